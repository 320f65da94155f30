import threading

import pytest

from vlm_jax.data.recipes.endpoint import BusyError, RefusedError
from vlm_jax.data.recipes.pace import Pace, StoppedError, Streak
from vlm_jax.errors import UserError


class Clock:
    """Time that passes while somebody waits."""

    def __init__(self):
        self.now, self.waits = 100.0, []

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.waits.append(seconds)
        self.now += seconds
        return False

    def is_set(self):
        return False


def paced(*args, **kwargs):
    clock = Clock()
    pace = Pace(*args, clock=clock, **kwargs)
    pace.stop = clock
    return pace, clock


def failing(times, error):
    left = [error] * times

    def ask():
        if left:
            raise left.pop()
        return "answer"

    return ask


def test_requests_are_spread_over_the_minute():
    pace, clock = paced(30)
    starts = []
    for _ in range(4):
        pace.request(lambda: starts.append(clock.now))
    assert starts == [100, 102, 104, 106]
    clock.now = 200
    pace.request(lambda: starts.append(clock.now))
    assert starts[-1] == 200
    pace, clock = paced()
    for _ in range(9):
        pace.request(lambda: None)
    assert clock.waits == []


def test_waits_grow_with_jitter():
    pace, clock = paced(attempts=6, first_wait=2.0, longest=10.0)
    assert pace.request(failing(5, BusyError("x"))) == "answer"
    for waited, whole in zip(clock.waits, [2, 4, 8, 10, 10], strict=True):
        assert whole / 2 <= waited <= whole
    assert pace.waits == 5
    with pytest.raises(BusyError):
        pace.request(failing(6, BusyError("x")))


def test_jitter_differs():
    waits = set()
    for _ in range(5):
        pace, clock = paced()
        pace.request(failing(1, BusyError("x")))
        waits.add(clock.waits[0])
    assert len(waits) == 5


def test_what_the_server_asks_for_holds_for_all():
    pace, clock = paced(first_wait=0.01)
    pace.request(failing(1, BusyError("x", wait=30.0)))
    assert clock.now >= 130
    pace, clock = paced(first_wait=0.01)
    with pytest.raises(RefusedError):
        pace.request(failing(1, RefusedError("no")))
    pace._put_off(30.0, 0)
    pace.request(lambda: None)  # of another thread
    assert clock.now >= 130
    with pytest.raises(UserError, match="asks to wait 5000 seconds"):
        pace.request(failing(1, BusyError("x", wait=5000.0)))


def test_waiting_can_be_stopped():
    pace = Pace(first_wait=60.0)
    threading.Timer(0.1, pace.stop.set).start()
    with pytest.raises(StoppedError):
        pace.request(failing(1, BusyError("x")))
    with pytest.raises(StoppedError):
        pace.request(lambda: None)


def test_a_streak_in_vain_ends_it():
    streak = Streak(3)
    for error in (BusyError("x"), BusyError("x"), None, BusyError("x"), BusyError("x")):
        streak.count(error)
    with pytest.raises(UserError, match="3 requests in a row"):
        streak.count(BusyError("gone"))
