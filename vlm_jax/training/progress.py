"""Where a run stands, and what it saw of its steps on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from vlm_jax.data.pipeline import START, Position
from vlm_jax.data.plan.shape import RowShape
from vlm_jax.errors import UserError
from vlm_jax.training.live import Screen, Status
from vlm_jax.training.log import Log
from vlm_jax.training.recipe import Stage
from vlm_jax.training.time_left import TimeLeft

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
      data: digest of the plan in which that is a position (`Batches.digest`).
      seconds: spent on the run so far.
      figures: of the stages so far, by name.
    """

    stage: int = 0
    step: int = 0
    position: Position = START
    data: str = ""
    seconds: float = 0.0
    figures: Figures = dataclasses.field(default_factory=dict)

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "position": list(self.position)}

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> Progress:
        """The inverse of `to_meta`."""
        fields = {"data": "", **meta}  # which checkpoints of before lack
        fields = {f.name: fields[f.name] for f in dataclasses.fields(cls)}
        return cls(**{**fields, "position": Position(*fields["position"])})


class Meter:
    """Averages metrics over some steps, knows how fast they were, and lets the person watching know.

    It reads a step's metrics one step late, so that the device never waits for the host.

    Attributes:
      status: what the person watching sees.
    """

    def __init__(
        self,
        stage: Stage,
        shape: RowShape,
        log: Log,
        before: int,
        progress: Progress,
        screen: Screen,
        left: TimeLeft,
        status: Status,
    ) -> None:
        """Begins to measure.

        Args:
          stage: the stage.
          shape: of the rows of its batches.
          log: takes the means.
          before: steps of the stages before.
          progress: takes the figures.
          screen: shows the status.
          left: learns from every step.
          status: of the stage as it begins, or goes on.
        """
        self._stage, self._log, self._before, self._progress = stage, log, before, progress
        self._screen, self._left, self.status = screen, left, status
        self._slots = (stage.data.rows * shape.tokens, max(1, stage.data.rows * shape.tiles))
        self._waiting: tuple[int, Any] | None = None
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = self._read_at = time.monotonic()
        self._show(fresh=False)

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

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Something else is done meanwhile, and seen to be: its seconds are none of a step's. Flush before it."""
        began = time.monotonic()
        self.status.doing = doing
        self._show(fresh=False)
        try:
            yield
        finally:
            self.status.doing = ""
            self._show(fresh=False)
            took = time.monotonic() - began
            self._since, self._read_at = self._since + took, self._read_at + took

    def _show(self, fresh: bool) -> None:
        self.status.left = self._left.left(self.status.step)
        self._screen.show(self.status, fresh)

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
        now = time.monotonic()
        self._left.add(now - self._read_at)
        self._read_at, self.status.step = now, step
        if step % LOG_EVERY == 0 or step == 1:
            self._write(step)
        else:
            self._show(fresh=False)

    def _write(self, step: int) -> None:
        seconds = time.monotonic() - self._since
        mean = {name: total / self._count for name, total in self._sums.items()}
        speed = {f"{name}_per_second": self._sums[name] / seconds for name in ("answers", "tokens", "tiles")}
        useful = {
            "useful_tokens": mean.pop("tokens") / self._slots[0],
            "useful_tiles": mean.pop("tiles") / self._slots[1],
        }
        entry = {"stage": self._stage.name, "step": step, **mean, **speed, **useful}
        self._log.steps(self._before + step, entry)
        self._remember(step, seconds, entry)
        self.status.entry, self.status.seconds = entry, self._progress.figures[self._stage.name]["seconds"]
        self._show(fresh=True)
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
