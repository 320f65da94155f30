import os
import signal

import pytest

from vlm_jax.training.interrupt import Interrupt


def work(interrupt, reached, signals):
    with interrupt.installed(), interrupt.held():
        for number in signals:
            os.kill(os.getpid(), number)
            reached.append(interrupt.requested)


def test_a_held_signal_is_a_flag_and_at_the_end_an_interruption():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        work(Interrupt(), reached, [signal.SIGTERM])
    assert reached == [True]


def test_a_second_signal_does_not_wait():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        work(Interrupt(), reached, [signal.SIGINT, signal.SIGINT])
    assert reached == [True]
