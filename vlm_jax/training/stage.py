"""One stage of a run, from wherever it stands to its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import Checkpoints
from vlm_jax.data.feed import read_ahead
from vlm_jax.data.pipeline import START, Batches, NothingLeftError, Position
from vlm_jax.data.plan.shape import RowShape
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.quarantine import Quarantine
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.globs import flatten, unflatten
from vlm_jax.sharding import batch_sharding, rows_here
from vlm_jax.training.data import Splits
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.live import Screen, Status
from vlm_jax.training.log import Clock, Log, say
from vlm_jax.training.optimizer import merge
from vlm_jax.training.progress import Meter, Progress
from vlm_jax.training.recipe import Recipe, Stage
from vlm_jax.training.step import Trainer, TrainState
from vlm_jax.training.time_left import TimeLeft
from vlm_jax.training.watch import Watch


def stage_preparer(recipe: Recipe, index: int, tokenizer: Tokenizer) -> Preparer:
    """What makes examples for stage number `index`; how long one may be is the context's to say."""
    stage = recipe.stages[index]
    system = recipe.system_in(stage)
    return system.preparer(tokenizer, system.model.decoder.context, loss_reduction=stage.loss_reduction, training=True)


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


class Watching(NamedTuple):
    """Who looks on while a run trains.

    Attributes:
      log: takes metrics and answers.
      screen: shows where it stands.
      left: knows how long it will take.
      watch: has the validation questions asked.
    """

    log: Log
    screen: Screen
    left: TimeLeft
    watch: Watch


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
        watching: Watching,
        clock: Clock,
        interrupt: Interrupt,
    ) -> None:
        self.recipe, self.index, self.splits, self.tokenizer = recipe, index, splits, tokenizer
        self.mesh, self.checkpoints, self.quarantine = mesh, checkpoints, quarantine
        self.watching, self.clock, self.interrupt = watching, clock, interrupt
        self.stage: Stage = recipe.stages[index]
        self.models = recipe.models_in(self.stage)
        self.before = sum(stage.steps for stage in recipe.stages[:index])

    def run(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Trains from `progress` (which it advances) to the stage's end and returns all parameters.

        `params` is empty afterwards: the stage moves copies of what it trains, and two of those need not fit the
        device.
        """
        if progress.step == self.stage.steps:
            number = self.before + progress.step
            if self.watching.watch.due(self.stage, progress.step, number):  # the run was killed before it came to that
                self.watching.watch.ask(self.stage, self.models, params, progress.step, number)
            return params
        trainer = Trainer(self.stage, self.models, self.mesh, params)
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
        with self.interrupt.held():
            state = self._steps(trainer, state, untouched, progress)
        return merge(untouched, state.trainable)

    def _steps(self, trainer: Trainer, state: TrainState, untouched: Any, progress: Progress) -> TrainState:
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), 1000 + self.index)
        numbered = self._batches(progress)
        with self.watching.screen.shown():
            meter = self._meter(numbered.shape, progress)
            self._look(meter, state, untouched, progress.step)
            saved = time.monotonic()
            for position, batch, bad in read_ahead(numbered, self.recipe.runtime.workers):
                if bad:
                    self.quarantine.add(bad)
                    self.quarantine.refuse_used_up(self.splits.train)
                with jax.set_mesh(self.mesh):
                    state, metrics = trainer.step(state, self._place(batch), key)
                progress.step, progress.position = progress.step + 1, position
                meter.add(progress.step, metrics)
                ended = progress.step == self.stage.steps
                due = ended or time.monotonic() - saved > self.recipe.runtime.checkpoint_seconds
                if due or self.interrupt.requested:
                    self._save(meter, state, untouched, progress)
                    due, saved = True, time.monotonic()
                self._look(meter, state, untouched, progress.step)
                if self.interrupt.requested:
                    if not due:  # it came while questions were asked
                        self._save(meter, state, untouched, progress)
                    self.checkpoints.finish()
                    raise KeyboardInterrupt
                if ended:
                    return state
        raise AssertionError("the data pipeline never ends")

    def _meter(self, shape: RowShape, progress: Progress) -> Meter:
        stages, watching = self.recipe.stages, self.watching
        watching.left.begin(self.index)
        widths = max(len(stage.name) for stage in stages), max(len(str(stage.steps)) for stage in stages)
        status = Status(
            self.stage.name, self.index + 1, len(stages), progress.step, self.stage.steps, widths=widths
        )  # fmt: skip
        return Meter(
            self.stage, shape, watching.log, self.before, progress, watching.screen, watching.left, status
        )  # fmt: skip

    def _save(self, meter: Meter, state: TrainState, untouched: Any, progress: Progress) -> None:
        meter.flush()  # a checkpoint knows all steps before it, and none of them was in vain
        progress.seconds = self.clock.seconds
        ended = progress.step == self.stage.steps
        number, params = self.before + progress.step, merge(untouched, state.trainable)
        self.checkpoints.save(number, params, state.optimizer, progress.to_meta(), permanent=ended)

    def _look(self, meter: Meter, state: TrainState, untouched: Any, step: int) -> None:
        """Asks the validation questions if it is time; the seconds that it takes are none of the steps'."""
        watch = self.watching.watch
        if watch.due(self.stage, step, self.before + step) and not self.interrupt.requested:
            meter.flush()
            with meter.paused(watch.doing):
                params = merge(untouched, state.trainable)
                watch.ask(self.stage, self.models, params, step, self.before + step)

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
