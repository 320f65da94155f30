"""The loop that runs every stage of a recipe, and continues exactly where it was cut off."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import Checkpoints, complete
from vlm_jax.data.feed import read_ahead
from vlm_jax.data.pipeline import START, Batches, NothingLeftError, Position
from vlm_jax.data.plan.index import load_index
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.quarantine import Quarantine, remove
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.globs import flatten, unflatten
from vlm_jax.models.vlm import init_params
from vlm_jax.sharding import batch_sharding, place, rows_here, tree_shardings
from vlm_jax.training.data import Splits
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.log import Clock, Log, say
from vlm_jax.training.optimizer import merge
from vlm_jax.training.progress import Figures, Meter, Progress
from vlm_jax.training.recipe import Recipe, Stage
from vlm_jax.training.step import Trainer, TrainState
from vlm_jax.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training leaves: all parameters the last stage held, and figures by stage."""

    params: dict[str, Any]
    figures: Figures


def initial_params(recipe: Recipe) -> dict[str, Any]:
    """Fresh float32 parameters of everything in the recipe; each part has its own key, so parts do not disturb it."""
    models, key = recipe.models, jax.random.key(recipe.seed)
    params = init_params(models.student, jax.random.fold_in(key, 0))
    if recipe.teacher is not None:
        teacher = init_params(models.teacher_vlm, jax.random.fold_in(key, 1))
        params["teacher"] = {part: teacher[part] for part in ("vision", "connector")}
    for i, stage in enumerate(recipe.stages):
        params.update(stage.objective.init(models, jax.random.fold_in(key, 2 + i)))
    return params


def live_parts(recipe: Recipe, stage: int) -> set[str]:
    """The parts of the parameters that stage number `stage` or a later one needs, and those that are exported."""
    parts = {"vision", "connector", "decoder"}
    return parts.union(*(s.objective.parts for s in recipe.stages[stage:]))


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
) -> Trained:
    """Runs the stages that are still to do; without a checkpoint, from `start` where it has a part, else from scratch.

    `start` is empty afterwards, so that its arrays can go once they are on the mesh.

    Raises:
      KeyboardInterrupt: a signal came; a checkpoint was written first.
      UserError: a checkpoint is damaged, the disk is full, or the data does not fit the config.
    """
    checkpoints = Checkpoints(workdir.checkpoints, recipe.runtime.keep_checkpoints)
    progress = Progress()
    params = jax.eval_shape(lambda: initial_params(recipe))
    number = checkpoints.latest()
    if number is None:
        params = _fresh_params(recipe, mesh, start or {})
    else:
        checkpoints.verify(number)
        progress = Progress.from_meta(checkpoints.meta(number))
        alive = live_parts(recipe, progress.stage)
        params = _restore_params(checkpoints, number, {k: v for k, v in params.items() if k in alive}, mesh)
        stage = recipe.stages[progress.stage]
        say(f"continuing from checkpoint {number}: stage {stage.name}, step {progress.step} of {stage.steps}")
    check_stages(recipe, splits, tokenizer, mesh, quarantine, progress.stage)
    clock.add(progress.seconds)
    log = Log(workdir, number or 0, clock, recipe.runtime.log_seconds)
    try:
        for i in range(progress.stage, len(recipe.stages)):
            if i > progress.stage:
                progress = dataclasses.replace(progress, stage=i, step=0, position=START, data="")
            params = {part: tree for part, tree in params.items() if part in live_parts(recipe, i)}
            runner = StageRunner(recipe, i, splits, tokenizer, mesh, checkpoints, quarantine, log, clock, interrupt)
            params = runner.run(params, progress)
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
    return {**drawn, **{part: place({part: start.pop(part)}, mesh, "float32")[part] for part in list(start)}}


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
) -> None:
    """Finds what would stop stage number `first` or a later one when its turn comes, which may be days from now.

    Raises:
      UserError: globs that match nothing, rows that the mesh does not divide, weights that do not fit, too many records
        that are bad or too long.
    """
    params = jax.eval_shape(lambda: initial_params(recipe))
    hosts = mesh.shape["data"] * mesh.shape["fsdp"]
    for i, stage in enumerate(recipe.stages[first:], start=first):
        if stage.data.rows % hosts:
            raise UserError(
                f"config.stages[{i}].data.rows: {stage.data.rows} rows cannot be dealt to data x fsdp = {hosts} devices"
            )
        Trainer(stage, recipe.models, mesh, params)
        numbered = stage_batches(recipe, i, splits, tokenizer, quarantine=quarantine)
        try:
            quarantine.add(numbered.bad)
        except UserError as error:
            raise UserError(f"config.stages[{i}].data: {error}") from None
        data, shape = stage.data, numbered.shape
        if None in (data.tokens, data.tiles):
            say(
                f"stage {stage.name}: rows of {shape.tokens:,} tokens and {shape.tiles} tiles, of which about "
                f"{shape.token_fill:.1%} and {shape.tile_fill:.1%} will be filled"
            )
    if quarantine.rows:
        say(f"{quarantine.summary()}; see {quarantine.path}")


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


def stage_preparer(recipe: Recipe, index: int, tokenizer: Tokenizer) -> Preparer:
    """What makes examples for stage number `index`; how long one may be is the context's to say."""
    context = recipe.system.model.decoder.context
    return recipe.system.preparer(tokenizer, context, loss_reduction=recipe.stages[index].loss_reduction)


def stage_batches(
    recipe: Recipe,
    index: int,
    splits: Splits,
    tokenizer: Tokenizer,
    start: Position = START,
    rows: Sequence[int] | None = None,
    quarantine: Quarantine | None = None,
) -> Batches:
    """The batches of stage number `index`, or these rows of each.

    Where a source has nothing left, the quarantine is told of its records first.

    Raises:
      UserError: the stage's weights do not fit the data, or a source has no record that can be used.
    """
    preparer, data = stage_preparer(recipe, index, tokenizer), recipe.stages[index].data
    try:
        return Batches(splits.train, preparer, data, recipe.seed, start, stage=index, rows=rows)
    except UserError as error:
        message = f"config.stages[{index}].data: {error}"
        if quarantine is not None and isinstance(error, NothingLeftError):
            quarantine.write(error.bad)
            message += f". {quarantine.summary()}; see {quarantine.path}"
        raise UserError(message) from None


def _restore_params(checkpoints: Checkpoints, number: int, shapes: Any, mesh: Mesh) -> dict[str, Any]:
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        tree_shardings(shapes, mesh),
    )
    return checkpoints.restore_params(number, like)


class StageRunner:
    """Runs one stage from wherever its progress stands to its end."""

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        splits: Splits,
        tokenizer: Tokenizer,
        mesh: Mesh,
        checkpoints: Checkpoints,
        quarantine: Quarantine,
        log: Log,
        clock: Clock,
        interrupt: Interrupt,
    ) -> None:
        self.recipe, self.index, self.splits, self.tokenizer = recipe, index, splits, tokenizer
        self.mesh, self.checkpoints, self.quarantine = mesh, checkpoints, quarantine
        self.log, self.clock, self.interrupt = log, clock, interrupt
        self.stage: Stage = recipe.stages[index]
        self.before = sum(stage.steps for stage in recipe.stages[:index])

    def run(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Trains from `progress` (which it advances) to the stage's end and returns all parameters.

        `params` is empty afterwards: the stage moves copies of what it trains, and two of those need not fit the
        device.
        """
        if progress.step == self.stage.steps:
            return params
        trainer = Trainer(self.stage, self.recipe.models, self.mesh, params)
        state = trainer.init(params)
        if progress.step > 0:
            optimizer = self.checkpoints.restore_optimizer(self.before + progress.step, trainer.abstract.optimizer)
            state = state._replace(
                step=jax.device_put(np.int32(progress.step), state.step.sharding), optimizer=optimizer
            )
        moved = flatten(state.trainable)
        untouched = unflatten({path: leaf for path, leaf in flatten(params).items() if path not in moved})
        params.clear()
        if progress.step == 0:
            trained, fixed = (sum(x.size for x in jax.tree.leaves(t)) for t in (state.trainable, state.frozen))
            say(
                f"stage {self.stage.name}: {self.stage.steps} steps, {trained:,} parameters train, {fixed:,} are frozen"
            )
        with jax.set_mesh(self.mesh), self.interrupt.held():
            state = self._steps(trainer, state, untouched, progress)
        return merge(untouched, state.trainable)

    def _steps(self, trainer: Trainer, state: TrainState, untouched: Any, progress: Progress) -> TrainState:
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), 1000 + self.index)
        numbered = self._batches(progress)
        meter = Meter(self.stage, numbered.shape, self.log, self.before, progress)
        saved = time.monotonic()
        for position, batch, bad in read_ahead(numbered, self.recipe.runtime.workers):
            if bad:
                self.quarantine.add(bad)
                self.quarantine.refuse_used_up(self.splits.train)
            batch = self._place(batch)
            state, metrics = trainer.step(state, batch, key)
            progress.step, progress.position = progress.step + 1, position
            meter.add(progress.step, metrics)
            ended = progress.step == self.stage.steps
            due = time.monotonic() - saved > self.recipe.runtime.checkpoint_seconds
            if ended or due or self.interrupt.requested:
                meter.flush()  # a checkpoint knows all steps before it, and none of them was in vain
                progress.seconds = self.clock.seconds
                params = merge(untouched, state.trainable)
                number = self.before + progress.step
                self.checkpoints.save(number, params, state.optimizer, progress.to_meta(), permanent=ended)
                saved = time.monotonic()
            if self.interrupt.requested:
                self.checkpoints.finish()
                raise KeyboardInterrupt
            if ended:
                return state
        raise AssertionError("the data pipeline never ends")

    def _batches(self, progress: Progress) -> Batches:
        """The batches from where `progress` stands, in so far as this process's devices hold their rows.

        Raises:
          UserError: the data is not what it was when the position was written, or not the same on every host.
        """
        rows = rows_here(self.mesh, self.stage.data.rows)
        numbered = stage_batches(self.recipe, self.index, self.splits, self.tokenizer, progress.position, rows)
        _agree(numbered.digest, self.stage)
        if progress.data not in ("", numbered.digest):
            raise UserError(
                f"stage {self.stage.name}: the data is not what it was when step {progress.step} was saved: sizes or "
                "usability of its records changed. Put it back as it was, or begin anew in another --workdir"
            )
        progress.data = numbered.digest
        return numbered

    def _place(self, batch: Batch) -> Batch:
        """The rows of all processes as one batch on the mesh."""
        sharding, rows = batch_sharding(self.mesh), self.stage.data.rows
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:])), batch)


def _agree(digest: str, stage: Stage) -> None:
    """Each host measures the data by itself; what they find must be the same, or they load rows of different plans.

    Raises:
      UserError: on every host, if it is not.
    """
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import process_allgather

        found = process_allgather(np.frombuffer(digest.encode(), np.uint8))
        if (found != found[0]).any():
            raise UserError(
                f"stage {stage.name}: the hosts do not see the same data: sizes or usability of its records differ. "
                "Give all of them the same files; an index-*.npz beside them may be older than a picture"
            )
