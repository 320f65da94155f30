"""What all commands share: how errors end them, how their flags are read, how they show progress.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

from vlm_jax.errors import UserError

OK, USER_ERROR, INTERRUPTED = 0, 2, 130
"""Exit codes: success; a mistake that the user can correct; Ctrl-C (128 + SIGINT, as shells count)."""

Advance = Callable[..., None]
"""`advance(n=1)`: n more items are done."""


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose mistakes are `UserError`s and whose help keeps its paragraphs.

    Abbreviated flags are refused: a script that relies on one breaks when a flag is added.
    """

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raises `UserError` in place of printing the whole usage."""
        raise UserError(f"{message} (`{self.prog} --help` lists the flags)")


_ASKED = "VLM_JAX_HUGE_PAGES"
"""Set in the environment of a command that was started again, so that it is not a third time."""


def ask_for_huge_pages(module: str) -> None:
    """Starts `python -m module` again, in the same process, with a malloc that asks for huge pages (glibc 2.35 on).

    XLA on a CPU takes and gives back its buffers in every step, and a page fault for each 4 KiB of them was a sixth of
    the processor time of a pocket run; with huge pages its steps take 0.7 to 0.85 of the time. glibc reads the setting
    when a process starts and never after. What the user set stays.
    """
    started = list(sys.orig_argv[-len(sys.argv) - 1 :][:2])  # neither a script, a debugger nor a notebook
    if "GLIBC_TUNABLES" in os.environ or started != ["-m", module] or os.environ.get(_ASKED):
        return
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35) and sys.executable:
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", _ASKED: "1"}
        with contextlib.suppress(OSError):  # then without
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    A `UserError` becomes one line on standard error and exit code 2, Ctrl-C exit code 130. Anything else is a defect
    and keeps its traceback (exit code 1).

    Args:
      main: takes the arguments without the program's name; returns the exit code, or None for success.
    """
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {plain(error)}\n")
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    sys.exit(code or OK)


def plain(text: object) -> str:
    """Text on one line, without characters that a terminal obeys: it may come from data that nobody has looked at."""
    return "".join(character if character.isprintable() else " " for character in " ".join(str(text).split()))


def is_live(stream: TextIO) -> bool:
    """Whether what was written to a stream can be drawn over: it is a terminal, and one that knows how.

    A notebook gives the commands that it starts a terminal of its own, but its page does not obey all that one does.
    """
    notebook = any(name in os.environ for name in ("JPY_PARENT_PID", "COLAB_RELEASE_TAG"))
    return stream.isatty() and not notebook and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def duration(seconds: float, *, rough: bool = False) -> str:
    """Seconds in words: "4.2 s", "48 s", "12 min 5 s", "1 h 40 min"; `rough` as estimates are said, "4 s", "12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 and not rough else f"{whole} s"
    if rough and 600 <= whole < 3600:
        return f"{min(59, round(whole / 60))} min"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextlib.contextmanager
def progress(description: str, total: int | None = None, *, every: float = 10.0) -> Iterator[Advance]:
    """Shows on standard error how far a piece of work is: a bar on a terminal, else a line now and then.

    Args:
      description: what is being done, as "Evaluating".
      total: number of items, or None when it is not known.
      every: seconds between two plain lines; the first and the last line always appear.

    Yields:
      `advance(n=1)`, to be called when n more items are done.
    """
    show = _bar if is_live(sys.stderr) else _lines
    with show(description, total, every) as advance:
        yield advance


@contextlib.contextmanager
def _bar(description: str, total: int | None, every: float) -> Iterator[Advance]:
    from rich import console, progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n=1: bar.advance(task, n)


@contextlib.contextmanager
def _lines(description: str, total: int | None, every: float) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def write(ending: str) -> None:
        count = f"{done}/{total}" if total is not None else str(done)
        sys.stderr.write(f"{description}: {count}{ending}\n")
        sys.stderr.flush()

    def advance(n: int = 1) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < every:
            return
        last = now
        elapsed = now - start
        left = f", about {elapsed / done * (total - done):.0f} s left" if total and done else ""
        write(f" after {elapsed:.0f} s{left}")

    write("")
    try:
        yield advance
    except BaseException:
        write(f" when it stopped after {time.monotonic() - start:.1f} s")
        raise
    write(f" done in {time.monotonic() - start:.1f} s")
