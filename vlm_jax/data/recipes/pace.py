"""How often a server is asked: so many requests a minute at most, and again, ever later, after it was busy.

Nothing here changes what is written, only when; so the jitter needs no seed.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from vlm_jax.data.recipes.endpoint import BusyError
from vlm_jax.errors import UserError

T = TypeVar("T")

LONGEST_WAIT = 900.0
"""Seconds; a server that asks for more ends the run, which can be continued later."""


class StoppedError(Exception):
    """Somebody asked to stop while there was something to wait for."""


class Pace:
    """Spreads requests over time for all threads together.

    Attributes:
      stop: ends all waiting when it is set.
      waits: how often a request was put off because the server was busy.
    """

    def __init__(
        self,
        per_minute: float = 0.0,
        *,
        attempts: int = 6,
        first_wait: float = 1.0,
        longest: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is waited for yet.

        Args:
          per_minute: requests at most, evenly spread; 0 is no limit.
          attempts: for one request.
          first_wait: seconds after the first attempt in vain; doubled after each further one.
          longest: seconds of a wait that we choose ourselves.
          clock: seconds from any beginning.
        """
        self.stop = threading.Event()
        self.waits = 0
        self._attempts, self._first, self._longest, self._clock = attempts, first_wait, longest, clock
        self._between = 60.0 / per_minute if per_minute else 0.0
        self._free, self._lock = 0.0, threading.Lock()

    def request(self, ask: Callable[[], T]) -> T:
        """Asks when it is time, and again while the server is busy.

        Raises:
          BusyError: it was in all attempts.
          UserError: it asks for a longer wait than we want to wait.
          StoppedError: see `stop`; also whatever else `ask` raises.
        """
        for attempt in range(self._attempts):
            self._wait(self._slot())
            try:
                return ask()
            except BusyError as error:
                if (error.wait or 0.0) > LONGEST_WAIT:
                    raise UserError(f"the server asks to wait {error.wait:.0f} seconds ({error})") from None
                if attempt + 1 == self._attempts:
                    raise
                self._put_off(error.wait, attempt)
        raise AssertionError("unreachable")

    def _slot(self) -> float:
        """Takes the next free moment; returns how many seconds it is away."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free)
            self._free = start + self._between
            return start - now

    def _put_off(self, asked: float | None, attempt: int) -> None:
        """Waits after an attempt in vain; what the server asks for holds for all threads."""
        with self._lock:
            self.waits += 1
            if asked is not None:
                self._free = max(self._free, self._clock() + asked)
        own = min(self._first * 2**attempt, self._longest)
        self._wait(own * random.uniform(0.5, 1.0))

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise StoppedError


@dataclasses.dataclass
class Streak:
    """Counts requests in vain in a row, over all threads: a server that is gone is not asked a million times.

    Attributes:
      most: how many may be.
    """

    most: int
    _now: int = 0
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def count(self, error: BusyError | None) -> None:
        """Tells of a request that was given up, or (None) of one that was answered.

        Raises:
          UserError: too many in a row.
        """
        with self._lock:
            self._now = self._now + 1 if error else 0
            if self._now >= self.most:
                raise UserError(f"the server does not answer: {self._now} requests in a row were given up ({error})")
