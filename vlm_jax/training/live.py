"""What a person sees of a run while it trains: a panel on a terminal, else a line now and then.

The panel stays below all other lines: whatever Python writes to standard output or standard error while it is shown
scrolls above it. It goes away when its stage ends, however it ends, and leaves the last figures as an ordinary line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vlm_jax.cli import duration, is_live
from vlm_jax.training.log import say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDEST = 100
"""Columns of the panel at most; longer lines are harder to read."""

REFRESHES = 2
"""How often a second the panel is drawn anew."""

UNKNOWN, NONE = "?", "–"


@dataclasses.dataclass
class Status:
    """Where a stage stands.

    Attributes:
      name: of the stage.
      number, stages: which it is, from 1, and how many there are.
      step, steps: how many of its steps are done, and how many it has.
      entry: the last line of `metrics.jsonl`; None before the first.
      left: seconds that the stage and the whole training will still take; None while nobody knows.
      seconds: what its steps took so far.
      doing: what is going on in place of a step; '' is a step.
      widths: columns that names of stages and numbers of steps take, so that lines stand below each other.
    """

    name: str
    number: int
    stages: int
    step: int
    steps: int
    entry: Mapping[str, Any] | None = None
    left: tuple[float, float] | None = None
    seconds: float = 0.0
    doing: str = ""
    widths: tuple[int, int] = (0, 0)

    @property
    def ended(self) -> bool:
        """All steps are done."""
        return self.step == self.steps


def figures(entry: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The metrics of some steps as a person reads them: what stands before each, itself at one width, and after."""
    answers = entry["answers_per_second"]
    return [
        ("loss ", f"{entry['loss']:7.4f}", ""),
        ("accuracy ", f"{entry['accuracy']:6.3f}" if "accuracy" in entry else f"{NONE:>6}", ""),
        ("rate ", f"{entry['learning_rate']:.2e}", ""),
        ("", f"{answers:4.0f}" if answers >= 9.95 else f"{answers:4.1f}", " answers/s"),  # large models are slow
        ("useful tokens ", f"{entry['useful_tokens']:4.0%}", ""),
    ]


def line(status: Status) -> str:
    """A status that has figures in one line, for a log."""
    name, step = status.widths
    here, training = (duration(seconds, rough=True) for seconds in status.left) if status.left else (UNKNOWN, UNKNOWN)
    ending = f"took {duration(status.seconds, rough=True)}" if status.ended else f"left {here}"
    if status.number < status.stages:
        ending += f", of all {training}" if not status.ended else f", left of all {training}"
    return "  ".join(
        [
            f"{status.name:>{name}} {status.number}/{status.stages}",
            f"{status.step:>{step}}/{status.steps:<{step}}",
            *map("".join, figures(status.entry or {})),
            ending,
        ]
    )


class Lines:
    """Says where a run stands every so often, at the first figures and at the end of a stage."""

    def __init__(self, every: float) -> None:
        """Says it every `every` seconds, whenever there are new figures."""
        self._every, self._said = every, float("-inf")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Nothing is shown in between."""
        yield

    def show(self, status: Status, fresh: bool) -> None:
        """Takes where the run stands; `fresh` where its figures are new."""
        if fresh and (time.monotonic() - self._said >= self._every or status.ended):
            self._said = time.monotonic()
            say(line(status))


def summary(status: Status) -> str:
    """What stays of a stage on a terminal, where a line should not be long."""
    done = f"{status.step:,}" if status.ended else f"{status.step:,} of {status.steps:,}"
    said = [f"{before}{value.strip()}" for before, value, _ in figures(status.entry or {})[:2] if value.strip() != NONE]
    return ", ".join([f"stage {status.name}: {done} steps took {duration(status.seconds, rough=True)}", *said])


class Panel:
    """Shows where a run stands at the bottom of a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        """Draws on `console`; on standard output when None."""
        from rich.console import Console

        self._console = console or Console()
        self._status: Status | None = None
        self._since = time.monotonic()
        self._said = 0  # the step whose figures were said

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the panel until the block is left; then the last figures stay as a line."""
        from rich.live import Live

        self._status, self._since, self._said = None, time.monotonic(), 0
        live = Live(
            console=self._console, get_renderable=self._draw, refresh_per_second=REFRESHES, transient=True,
            vertical_overflow="ellipsis",
        )  # fmt: skip
        try:
            with live:
                yield
        finally:
            self._say()

    def show(self, status: Status, fresh: bool) -> None:
        """Takes where the run stands; `fresh` where its figures are new."""
        if self._status is None or (status.step, status.doing) != (self._status.step, self._status.doing):
            self._since = time.monotonic()
        self._status = dataclasses.replace(status)  # another thread draws it
        if fresh and status.ended:
            self._say()

    def _say(self) -> None:
        status = self._status
        if status is not None and status.entry is not None and status.step != self._said:
            self._said = status.step
            say(summary(status))

    def _draw(self) -> RenderableType:
        from rich.text import Text

        return draw(self._status, time.monotonic() - self._since, self._console.width) if self._status else Text("")


def draw(status: Status, waited: float, width: int) -> RenderableType:
    """The panel.

    Args:
      status: what it shows.
      waited: seconds since the last step ended, or since what is `doing` began.
      width: columns of the terminal.
    """
    from rich import box
    from rich.columns import Columns
    from rich.console import Group
    from rich.panel import Panel as Frame
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    share = status.step / status.steps
    bar.add_row(
        ProgressBar(status.steps, status.step, complete_style="cyan"),
        f"step {status.step:,} of {status.steps:,}  [bold]{share:.0%}[/]",
    )
    if status.entry is not None:
        values = [Text.assemble((before, "dim"), (value.strip(), "bold"), (after, "dim"))
                  for before, value, after in figures(status.entry)]  # fmt: skip
        middle: RenderableType = Columns(values, padding=(0, 2))
    else:
        middle = Text(f"compiling the first step ... {duration(waited, rough=True)}", style="dim")
    if status.doing:
        last = Text(f"{status.doing} ... {duration(waited, rough=True)}", style="yellow")
    elif status.left is None:
        last = Text("time left: not known yet", style="dim")
    else:
        here, training = (duration(seconds, rough=True) for seconds in status.left)
        last = Text.assemble(("left: ", "dim"), (here, "bold"), (" in this stage", "dim"))
        if status.number < status.stages:
            last.append(", about ", "dim").append(training, "bold").append(" in all", "dim")
    title = Text.assemble(f"stage {status.number} of {status.stages}: ", (status.name, "bold"))
    return Frame(
        Group(bar, middle, last),
        title=title, title_align="left", border_style="cyan", box=box.ROUNDED, width=min(width, WIDEST),
    )  # fmt: skip


Screen = Lines | Panel


def screen(every: float) -> Screen:
    """The panel where standard output is a terminal that can draw it, else lines, one every `every` seconds."""
    return Panel() if is_live(sys.stdout) else Lines(every)
