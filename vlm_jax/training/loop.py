"""The loop that runs every stage of a recipe, and continues exactly where it was cut off."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import Checkpoints
from vlm_jax.data.pipeline import START, Position, batches
from vlm_jax.data.tokenizer import Tokenizer
from vlm_jax.models.vlm import init_params
from vlm_jax.sharding import batch_sharding, tree_shardings
from vlm_jax.training.data import Splits
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.log import Clock, Log, say
from vlm_jax.training.optimizer import merge, split_trainable
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
) -> Trained:
    """Runs the stages that are still to do.

    Raises:
      KeyboardInterrupt: a signal came; a checkpoint was written first.
      UserError: a checkpoint is damaged, the disk is full, or the data does not fit the config.
    """
    checkpoints = Checkpoints(workdir.checkpoints, recipe.runtime.keep_checkpoints)
    progress = Progress()
    params = jax.eval_shape(lambda: initial_params(recipe))
    number = checkpoints.latest()
    if number is None:
        params = jax.jit(lambda: initial_params(recipe), out_shardings=tree_shardings(params, mesh))()
    else:
        checkpoints.verify(number)
        progress = Progress.from_meta(checkpoints.meta(number))
        alive = live_parts(recipe, progress.stage)
        params = _restore_params(checkpoints, number, {k: v for k, v in params.items() if k in alive}, mesh)
        stage = recipe.stages[progress.stage]
        say(f"continuing from checkpoint {number}: stage {stage.name}, step {progress.step} of {stage.steps}")
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
        log.close()
        checkpoints.close()  # after an error too: what is being written is somebody's work


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
        """Trains from `progress` (which it advances) to the stage's end and returns all parameters."""
        if progress.step == self.stage.steps:
            return params
        trainer = Trainer(self.stage, self.recipe.models, self.mesh, params)
        state = trainer.init(params)
        if progress.step > 0:
            optimizer = self.checkpoints.restore_optimizer(self.before + progress.step, trainer.abstract.optimizer)
            state = state._replace(
                step=jax.device_put(np.int32(progress.step), state.step.sharding), optimizer=optimizer
            )
        _, untouched = split_trainable(params, self.stage.trainable)
        del params
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
        for position, batch in self._batches(progress.position):
            batch = jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), batch)
            state, metrics = trainer.step(state, batch, key)
            progress.step, progress.position = progress.step + 1, position
            meter.add(progress.step, metrics)
            ended = progress.step == self.stage.steps
            due = time.monotonic() - saved > self.recipe.runtime.checkpoint_seconds
            if ended or due or self.interrupt.requested:
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

    def _batches(self, start: Position) -> Iterator[tuple[Position, Batch]]:
        stage, recipe = self.stage, self.recipe
        preparer = recipe.system.preparer(self.tokenizer, stage.data.tokens, loss_reduction=stage.loss_reduction)
        return batches(
            self.splits.train,
            preparer,
            stage.data,
            recipe.seed,
            start,
            stage=self.index,
            workers=recipe.runtime.workers,
        )


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
        if step == self._stage.steps:
            self._read(*self._waiting)

    def _read(self, step: int, metrics: Any) -> None:
        for name, value in jax.device_get(metrics).items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += 1
        if step % LOG_EVERY == 0 or step == self._stage.steps or step == 1:
            self._write(step)

    def _write(self, step: int) -> None:
        seconds, data = time.monotonic() - self._since, self._stage.data
        mean = {name: total / self._count for name, total in self._sums.items()}
        speed = {f"{name}_per_second": self._sums[name] / seconds for name in ("conversations", "tokens", "tiles")}
        useful = {
            "useful_tokens": mean.pop("tokens") / (data.rows * data.tokens),
            "useful_tiles": mean.pop("tiles") / (data.rows * data.tiles),
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
        for name in ("conversations", "tokens", "tiles"):
            total = figures.get(f"{name}_seen", 0) + self._sums[name]
            figures[f"{name}_seen"] = total
            figures[f"{name}_per_second"] = total / figures["seconds"]
