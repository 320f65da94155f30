"""The loop that runs every stage of a recipe, and continues exactly where it was cut off."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.checkpoints import Checkpoints
from vlm_jax.data.pipeline import START, Batches, Position, read_ahead
from vlm_jax.data.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.globs import flatten, unflatten
from vlm_jax.models.vlm import init_params
from vlm_jax.sharding import batch_sharding, place, tree_shardings
from vlm_jax.training.data import Splits
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.log import Clock, Log, say
from vlm_jax.training.optimizer import merge
from vlm_jax.training.recipe import Recipe, Stage
from vlm_jax.training.step import Trainer, TrainState
from vlm_jax.training.workdir import Workdir

LOG_EVERY = 10
"""Steps whose mean makes one line of `metrics.jsonl`."""

Figures = dict[str, dict[str, float]]


@dataclasses.dataclass
class Progress:
    """Where a run stands: what a checkpoint's meta says.

    Attributes:
      stage: number of the stage.
      step: steps of it that are done.
      position: where its data continues.
      seconds: spent on the run so far.
      figures: of the stages so far, by name.
    """

    stage: int = 0
    step: int = 0
    position: Position = START
    seconds: float = 0.0
    figures: Figures = dataclasses.field(default_factory=dict)

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "position": list(self.position)}

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> Progress:
        """The inverse of `to_meta`."""
        fields = {f.name: meta[f.name] for f in dataclasses.fields(cls)}
        return cls(**{**fields, "position": Position(*fields["position"])})


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
    check_stages(recipe, splits, tokenizer, mesh, progress.stage)
    clock.add(progress.seconds)
    log = Log(workdir, number or 0, clock, recipe.runtime.log_seconds)
    try:
        for i in range(progress.stage, len(recipe.stages)):
            if i > progress.stage:
                progress = dataclasses.replace(progress, stage=i, step=0, position=START)
            params = {part: tree for part, tree in params.items() if part in live_parts(recipe, i)}
            runner = StageRunner(recipe, i, splits, tokenizer, mesh, checkpoints, log, clock, interrupt)
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


def check_stages(recipe: Recipe, splits: Splits, tokenizer: Tokenizer, mesh: Mesh, first: int = 0) -> None:
    """Finds what would stop stage number `first` or a later one when its turn comes, which may be days from now.

    Raises:
      UserError: globs that match nothing, rows that the mesh does not divide, weights or records that do not fit.
    """
    params = jax.eval_shape(lambda: initial_params(recipe))
    hosts = mesh.shape["data"] * mesh.shape["fsdp"]
    for i, stage in enumerate(recipe.stages[first:], start=first):
        if stage.data.rows % hosts:
            raise UserError(
                f"config.stages[{i}].data.rows: {stage.data.rows} rows cannot be dealt to data x fsdp = {hosts} devices"
            )
        Trainer(stage, recipe.models, mesh, params)
        stage_batches(recipe, i, splits, tokenizer)


def with_steps(recipe: Recipe, splits: Splits, tokenizer: Tokenizer) -> Recipe:
    """The recipe with every stage's epochs counted as steps: a step is a batch of the plan.

    Raises:
      UserError: as `stage_batches`.
    """
    stages = []
    for i, stage in enumerate(recipe.stages):
        if stage.epochs:
            plan, whole = stage_batches(recipe, i, splits, tokenizer), int(stage.epochs)
            steps = sum(plan.count(epoch) for epoch in range(whole)) + plan.count(whole) * (stage.epochs - whole)
            stage = dataclasses.replace(stage, steps=max(1, math.ceil(steps)), epochs=0.0)
        stages.append(stage)
    return dataclasses.replace(recipe, stages=tuple(stages))


def stage_batches(recipe: Recipe, index: int, splits: Splits, tokenizer: Tokenizer, start: Position = START) -> Batches:
    """The batches of stage number `index`.

    Raises:
      UserError: the stage's weights do not fit the data, or a record does not fit a row.
    """
    data = recipe.stages[index].data
    preparer = recipe.system.preparer(tokenizer, data.tokens, loss_reduction=recipe.stages[index].loss_reduction)
    try:
        return Batches(splits.train, preparer, data, recipe.seed, start, stage=index)
    except UserError as error:
        raise UserError(f"config.stages[{index}].data: {error}") from None


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
        log: Log,
        clock: Clock,
        interrupt: Interrupt,
    ) -> None:
        self.recipe, self.index, self.splits, self.tokenizer = recipe, index, splits, tokenizer
        self.mesh, self.checkpoints, self.log, self.clock = mesh, checkpoints, log, clock
        self.interrupt = interrupt
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
        place, meter = batch_sharding(self.mesh), Meter(self.stage, self.log, self.before, progress)
        saved = time.monotonic()
        numbered = stage_batches(self.recipe, self.index, self.splits, self.tokenizer, progress.position)
        for position, batch in read_ahead(numbered, self.recipe.runtime.workers):
            batch = jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), batch)
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


class Meter:
    """Averages metrics over some steps, and knows how fast they were.

    It reads a step's metrics one step late, so that the device never waits for the host.
    """

    def __init__(self, stage: Stage, log: Log, before: int, progress: Progress) -> None:
        self._stage, self._log, self._before, self._progress = stage, log, before, progress
        self._waiting: tuple[int, Any] | None = None
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.monotonic()

    def add(self, step: int, metrics: Any) -> None:
        """Takes the metrics of `step` (still being computed) and reads those of the step before."""
        waiting, self._waiting = self._waiting, (step, metrics)
        if waiting is not None:
            self._read(*waiting)

    def flush(self) -> None:
        """Reads and writes what is left, up to the last step that was added."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._read(*waiting)
            if self._count:
                self._write(waiting[0])

    def _read(self, step: int, metrics: Any) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"stage {self._stage.name}, step {step}: the loss is {values['loss']} (the gradient's norm was "
                f"{values['gradient_norm']:.3g}); the last checkpoint is from before. A lower "
                "optimizer.learning_rate or more warm-up may help"
            )
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % LOG_EVERY == 0 or step == 1:
            self._write(step)

    def _write(self, step: int) -> None:
        seconds, data = time.monotonic() - self._since, self._stage.data
        mean = {name: total / self._count for name, total in self._sums.items()}
        speed = {f"{name}_per_second": self._sums[name] / seconds for name in ("answers", "tokens", "tiles")}
        useful = {
            "useful_tokens": mean.pop("tokens") / (data.rows * data.tokens),
            "useful_tiles": mean.pop("tiles") / max(1, data.rows * data.tiles),
        }
        entry = {"stage": self._stage.name, "step": step, **mean, **speed, **useful}
        left = (self._stage.steps - step) * seconds / self._count
        self._log.steps(self._before + step, entry, self._stage.steps, left)
        self._remember(step, seconds, entry)
        self._sums, self._count, self._since = {}, 0, time.monotonic()

    def _remember(self, step: int, seconds: float, entry: dict[str, Any]) -> None:
        figures = self._progress.figures.setdefault(self._stage.name, {"first_loss": entry["loss"], "seconds": 0.0})
        figures["steps"] = step
        figures["seconds"] += seconds
        figures["last_loss"] = entry["loss"]
        for name in ("answers", "tokens", "tiles"):
            total = figures.get(f"{name}_seen", 0) + self._sums[name]
            figures[f"{name}_seen"] = total
            figures[f"{name}_per_second"] = total / figures["seconds"]
