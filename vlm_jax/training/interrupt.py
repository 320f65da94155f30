"""SIGTERM and Ctrl-C: leave at once, except where there is something to save first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """Turns SIGINT and SIGTERM into `KeyboardInterrupt`, or while `held` into a flag that the loop looks at.

    A second signal always interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._holding = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[Interrupt]:
        """Handles both signals inside the block and gives the old handlers back after it."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block a first signal only sets `requested`; if nobody looked, it interrupts at the block's end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.requested or not self._holding:
            raise KeyboardInterrupt
        self.requested = True
