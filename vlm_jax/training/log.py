"""What a run says while it trains: `metrics.jsonl`, TensorBoard events, and a line now and then."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from vlm_jax.files import write_atomically
from vlm_jax.training.workdir import Workdir


def say(text: str) -> None:
    """One line to the person watching."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Clock:
    """Seconds of a run since it began, without the pauses between its starts."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def add(self, seconds: float) -> None:
        """Counts what earlier starts of the run took."""
        self._start -= seconds

    @property
    def seconds(self) -> float:
        """What the run took so far."""
        return time.monotonic() - self._start


class Log:
    """Writes the metrics of steps."""

    def __init__(self, workdir: Workdir, number: int, clock: Clock, say_seconds: float) -> None:
        """Opens the files; entries after global step `number` (of a start that was cut off) are dropped.

        Args:
          workdir: of the run.
          number: global step that the run continues from.
          clock: of the run.
          say_seconds: how often a line is printed.
        """
        from tensorboardX import SummaryWriter

        if workdir.metrics.is_file():
            kept = [line for line in workdir.metrics.read_text().splitlines() if _number(line) <= number]
            write_atomically(workdir.metrics, "".join(line + "\n" for line in kept))
        self._file = workdir.metrics.open("a")
        self._board = SummaryWriter(str(workdir.events), purge_step=number + 1, flush_secs=30)
        self._clock = clock
        self._say_seconds, self._said = say_seconds, float("-inf")

    def steps(self, number: int, entry: dict[str, Any], total: int, left: float) -> None:
        """Records the mean metrics of the steps up to `entry['step']` of `entry['stage']`.

        Args:
          number: global step.
          entry: `stage`, `step`, `loss`, `learning_rate`, ... ; `seconds` and `number` are added.
          total: steps of the stage.
          left: seconds that the stage will still take, as an estimate.
        """
        entry = {**entry, "number": number, "seconds": round(self._clock.seconds, 2)}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        for name, value in entry.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{entry['stage']}/{name}", value, number)
        if time.monotonic() - self._said >= self._say_seconds or entry["step"] == total:
            self._said = time.monotonic()
            say(
                f"{entry['stage']:>8} {entry['step']:>5}/{total}  loss {entry['loss']:.4f}  "
                f"accuracy {entry['accuracy']:.3f}  rate {entry['learning_rate']:.2e}  "
                f"{entry['answers_per_second']:.0f} answers/s  useful tokens {entry['useful_tokens']:.0%}  "
                f"left {left:.0f} s"
            )

    def close(self) -> None:
        """Writes what is still buffered."""
        try:
            self._file.close()
        finally:
            self._board.close()


def _number(line: str) -> int:
    """Global step of a metrics line; a line that was cut off counts as the future."""
    try:
        return json.loads(line)["number"]
    except (ValueError, KeyError):
        return sys.maxsize
