"""The loop that runs every stage of a recipe, and continues exactly where it was cut off."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from vlm_jax.checkpoints import Checkpoints, complete
from vlm_jax.data.pipeline import START
from vlm_jax.data.plan.index import load_index
from vlm_jax.data.quarantine import Quarantine, remove
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.globs import flatten, unflatten
from vlm_jax.models.positions import resize_positions
from vlm_jax.models.vlm import PARTS, init_params
from vlm_jax.sharding import place, tree_shardings
from vlm_jax.training.data import Splits
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.live import screen
from vlm_jax.training.log import Clock, Log, say
from vlm_jax.training.objectives import Models
from vlm_jax.training.progress import Figures, Progress
from vlm_jax.training.recipe import Recipe
from vlm_jax.training.stage import StageRunner, Watching, stage_batches, stage_preparer
from vlm_jax.training.step import Trainer
from vlm_jax.training.time_left import TimeLeft, step_cost
from vlm_jax.training.watch import Ask, Watch
from vlm_jax.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training leaves: all parameters the last stage held, and figures by stage."""

    params: dict[str, Any]
    figures: Figures


def initial_params(recipe: Recipe) -> dict[str, Any]:
    """Fresh float32 parameters of everything in the recipe, as its first stage takes them.

    Each part has its own key, so parts do not disturb one another.
    """
    models, key = recipe.models_in(recipe.stages[0]), jax.random.key(recipe.seed)
    params = init_params(models.student, jax.random.fold_in(key, 0))
    if recipe.teacher is not None:
        teacher = init_params(models.teacher_vlm, jax.random.fold_in(key, 1))
        params["teacher"] = {part: teacher[part] for part in ("vision", "connector")}
    for i, stage in enumerate(recipe.stages):
        params.update(stage.objective.init(models, jax.random.fold_in(key, 2 + i)))
    return params


def shapes_in(recipe: Recipe, stage: int) -> dict[str, Any]:
    """Shapes of all parameters as stage number `stage` takes them."""
    models = recipe.models_in(recipe.stages[stage])
    return jax.eval_shape(lambda: fit_positions(initial_params(recipe), models))


def fit_positions(params: dict[str, Any], models: Models) -> dict[str, Any]:
    """Parameters whose tables of positions have the grids of `models`: where one is another, it is interpolated."""
    towers = {"vision": models.student.vision}
    if models.teacher is not None:
        towers["teacher/vision"] = models.teacher.vision
    flat = flatten(params)
    for tower, vision in towers.items():
        path = f"{tower}/position_embedding"
        if path in flat:
            grid = math.isqrt(len(flat[path]) - vision.first_patch)
            flat[path] = resize_positions(flat[path], grid, vision.grid, vision.class_token)
    return unflatten(flat)


def live_parts(recipe: Recipe, stage: int) -> set[str]:
    """The parts of the parameters that stage number `stage` or a later one needs, and those that are exported."""
    return set(PARTS).union(*(s.objective.parts for s in recipe.stages[stage:]))


def train(
    recipe: Recipe,
    workdir: Workdir,
    splits: Splits,
    tokenizer: Tokenizer,
    mesh: Mesh,
    clock: Clock,
    interrupt: Interrupt,
    quarantine: Quarantine,
    start: dict[str, Any] | None = None,
    ask: Ask | None = None,
) -> Trained:
    """Runs the stages that are still to do; without a checkpoint, from `start` where it has a part, else from scratch.

    `start` is empty afterwards, so that its arrays can go once they are on the mesh. `ask` is called as
    `config.evaluation.watch` says; what it does changes no number of the training.

    Raises:
      KeyboardInterrupt: a signal came; a checkpoint was written first.
      UserError: a checkpoint is damaged, the disk is full, or the data does not fit the config.
    """
    checkpoints = Checkpoints(workdir.checkpoints, recipe.runtime.keep_checkpoints)
    progress = Progress()
    number = checkpoints.latest()
    if number is None:
        params = _fresh_params(recipe, mesh, start or {})
    else:
        checkpoints.verify(number)
        progress = Progress.from_meta(checkpoints.meta(number))
        alive, shapes = live_parts(recipe, progress.stage), shapes_in(recipe, progress.stage)
        params = _restore_params(checkpoints, number, {k: v for k, v in shapes.items() if k in alive}, mesh)
        stage = recipe.stages[progress.stage]
        say(f"continuing from checkpoint {number}: stage {stage.name}, step {progress.step} of {stage.steps}")
    costs = check_stages(recipe, splits, tokenizer, mesh, quarantine, progress.stage)
    left = TimeLeft([stage.steps for stage in recipe.stages], [0.0] * progress.stage + costs)
    clock.add(progress.seconds)
    log = Log(workdir, number or 0, clock)
    watch = Watch(ask, recipe.evaluation.watch_steps, log)
    watching = Watching(log, screen(recipe.runtime.log_seconds), left, watch)
    try:
        for i in range(progress.stage, len(recipe.stages)):
            if i > progress.stage:
                progress = dataclasses.replace(progress, stage=i, step=0, position=START, data="")
            params = {part: tree for part, tree in params.items() if part in live_parts(recipe, i)}
            params = fit_positions(params, recipe.models_in(recipe.stages[i]))
            runner = StageRunner(
                recipe, i, splits, tokenizer, mesh, checkpoints, quarantine, watching, clock, interrupt
            )
            params = runner.run(params, progress)
        for name, seconds in log.validation_seconds().items():
            progress.figures[name]["validation_seconds"] = seconds
        return Trained(params, progress.figures)
    finally:
        try:
            log.close()
        finally:
            checkpoints.close()  # after an error too: what is being written is somebody's work


def _fresh_params(recipe: Recipe, mesh: Mesh, start: dict[str, Any]) -> dict[str, Any]:
    """Float32 parameters on the mesh: those of `start` one at a time, what it lacks drawn at random."""

    def absent() -> dict[str, Any]:
        return {part: tree for part, tree in initial_params(recipe).items() if part not in start}

    shapes = jax.eval_shape(absent)
    drawn = jax.jit(absent, out_shardings=tree_shardings(shapes, mesh))() if shapes else {}
    given = {part: place({part: start.pop(part)}, mesh, "float32")[part] for part in list(start)}
    return fit_positions({**drawn, **given}, recipe.models_in(recipe.stages[0]))


def open_quarantine(recipe: Recipe, workdir: Workdir, splits: Splits) -> Quarantine:
    """The list of bad records of the run, empty as long as nothing was trained.

    A host that is not the first keeps one of its own, as only one may write a file.
    """
    number = jax.process_index()
    path = workdir.quarantine.with_suffix(f".{number}.jsonl") if number else workdir.quarantine
    if not complete(workdir.checkpoints):
        remove(path)  # of an attempt that was refused
    return Quarantine(path, len(splits.train), recipe.max_bad, source=splits.train.name, setting="config.max_bad")


def check_stages(
    recipe: Recipe, splits: Splits, tokenizer: Tokenizer, mesh: Mesh, quarantine: Quarantine, first: int = 0
) -> list[float]:
    """Finds what would stop stage number `first` or a later one when its turn comes, which may be days from now.

    Returns:
      What a step of each of these stages costs (`step_cost`).

    Raises:
      UserError: globs that match nothing, rows that the mesh does not divide, weights that do not fit, too many records
        that are bad or too long.
    """
    hosts = mesh.shape["data"] * mesh.shape["fsdp"]
    costs = []
    for i, stage in enumerate(recipe.stages[first:], start=first):
        if stage.data.rows % hosts:
            raise UserError(
                f"config.stages[{i}].data.rows: {stage.data.rows} rows cannot be dealt to data x fsdp = {hosts} devices"
            )
        models = recipe.models_in(stage)
        state = Trainer(stage, models, mesh, shapes_in(recipe, i)).abstract
        numbered = stage_batches(recipe, i, splits, tokenizer, quarantine=quarantine)
        try:
            quarantine.add(numbered.bad)
        except UserError as error:
            raise UserError(f"config.stages[{i}].data: {error}") from None
        data, shape = stage.data, numbered.shape
        costs.append(step_cost(stage, shape.tokens, shape.tiles, state.trainable, state.frozen, models.student))
        if None in (data.tokens, data.tiles):
            say(
                f"stage {stage.name}: rows of {shape.tokens:,} tokens and {shape.tiles} tiles, of which about "
                f"{shape.token_fill:.1%} and {shape.tile_fill:.1%} will be filled"
            )
    if quarantine.rows:
        say(f"{quarantine.summary()}; see {quarantine.path}")
    return costs


def with_steps(recipe: Recipe, splits: Splits, tokenizer: Tokenizer, quarantine: Quarantine, fresh: bool) -> Recipe:
    """The recipe with every stage's epochs counted as steps: a step is a batch of the plan.

    Args:
      recipe: the recipe.
      splits, tokenizer, quarantine: of the run.
      fresh: nothing was trained yet, so that records that could not be used are looked at once more.

    Raises:
      UserError: as `stage_batches`.
    """
    stages = []
    if fresh:
        for i in range(len(recipe.stages)):
            load_index(splits.train, stage_preparer(recipe, i, tokenizer), again=True)
    for i, stage in enumerate(recipe.stages):
        if stage.epochs:
            plan, whole = stage_batches(recipe, i, splits, tokenizer, quarantine=quarantine), int(stage.epochs)
            steps = sum(plan.count(epoch) for epoch in range(whole)) + plan.count(whole) * (stage.epochs - whole)
            stage = dataclasses.replace(stage, steps=max(1, math.ceil(steps)), epochs=0.0)
        stages.append(stage)
    return dataclasses.replace(recipe, stages=tuple(stages))


def _restore_params(checkpoints: Checkpoints, number: int, shapes: Any, mesh: Mesh) -> dict[str, Any]:
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        tree_shardings(shapes, mesh),
    )
    return checkpoints.restore_params(number, like)
