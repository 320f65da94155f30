"""What a run writes while it trains, `metrics.jsonl` and events for TensorBoard, and how it says a line."""

from __future__ import annotations

import collections
import json
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from vlm_jax.files import write_atomically
from vlm_jax.training.pictures import Example, draw_example
from vlm_jax.training.workdir import Workdir

EXAMPLES = 2
"""Questions of every task that TensorBoard shows as pictures."""


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
    """Writes the metrics of steps, and what the model answers to the validation questions."""

    def __init__(self, workdir: Workdir, number: int, clock: Clock) -> None:
        """Opens the files; entries after global step `number` (of a start that was cut off) are dropped.

        Args:
          workdir: of the run.
          number: global step that the run continues from.
          clock: of the run.
        """
        from tensorboardX import SummaryWriter

        self._path = workdir.metrics
        self._last: dict[str, Any] = {}
        if self._path.is_file():
            kept = [line for line in self._path.read_text().splitlines() if _number(line) <= number]
            write_atomically(self._path, "".join(line + "\n" for line in kept))
            self._last = json.loads(kept[-1]) if kept else {}
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir.events), purge_step=number + 1, flush_secs=30)
        self._clock = clock

    def steps(self, number: int, entry: dict[str, Any]) -> None:
        """Records the mean metrics of the steps up to `entry['step']` of `entry['stage']`.

        Args:
          number: global step.
          entry: `stage`, `step`, `loss`, `learning_rate`, ... ; `seconds` and `number` are added.
        """
        self._last = {**entry, "number": number, "seconds": round(self._clock.seconds, 2)}
        self._file.write(json.dumps(self._last) + "\n")
        self._file.flush()
        for name, value in self._last.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{entry['stage']}/{name}", value, number)

    def asked(self, number: int) -> bool:
        """Whether the validation questions were asked at global step `number`, the last there is."""
        return self._last.get("number") == number and "validation" in self._last

    def validation(
        self,
        number: int,
        speaker: str,
        scores: Mapping[str, float],
        mean: float,
        examples: Iterable[Example],
        seconds: float,
    ) -> None:
        """Records what a model answered at global step `number`.

        It becomes part of that step's line in `metrics.jsonl`, under `validation`, so that a step has one line.
        TensorBoard gets the scores as `validation/<task>`, and examples as pictures; those of a teacher have names of
        their own.

        Args:
          number: global step; the last line must be that of it.
          speaker: the model that was asked, "student" or "teacher".
          scores: by task, in [0, 1].
          mean: over the tasks.
          examples: the questions and its answers; the first ones of each task are drawn.
          seconds: that it took.
        """
        of = "" if speaker == "student" else f"-{speaker}"
        for task, score in {**scores, "mean": mean}.items():
            self._board.add_scalar(f"validation{of}/{task}", score, number)
        drawn: collections.Counter[str] = collections.Counter()
        for example in examples:
            drawn[example.task] += 1
            if drawn[example.task] <= EXAMPLES:
                name = f"examples{of}/{example.task}-{drawn[example.task]}"
                self._board.add_image(name, draw_example(example), number, dataformats="HWC")
        self._board.flush()
        if self._last.get("number") != number:
            return  # somebody took the file away
        found = {"of": speaker, "scores": dict(scores), "mean": mean, "seconds": round(seconds, 2)}
        self._last["validation"] = found
        self._file.close()
        lines = self._path.read_text().splitlines()
        write_atomically(self._path, "".join(line + "\n" for line in [*lines[:-1], json.dumps(self._last)]))
        self._file = self._path.open("a")

    def validation_seconds(self) -> dict[str, float]:
        """What asking took in every stage in which it was done."""
        seconds: dict[str, float] = {}
        for line in self._path.read_text().splitlines():
            entry = json.loads(line)
            if "validation" in entry:
                seconds[entry["stage"]] = seconds.get(entry["stage"], 0.0) + entry["validation"]["seconds"]
        return seconds

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
