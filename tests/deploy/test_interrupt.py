"""A signal ends what it is sent to, also when Python is in the midst of something that drops exceptions"""

import os
import signal
import time

import pytest

from crucible_deploy.interrupt import raised_by_signals


class Finalized:
    """Is sent a signal while it is finalized."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        for _ in range(100):  # so that the signal's handler runs in here
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_not_lost_in_a_finalizer(number):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def work():
        with raised_by_signals():
            Finalized(number)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_nor_is_one_at_the_end_of_the_work():
    def work():
        with raised_by_signals():
            Finalized(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_errors_of_finalizers_are_told_as_ever(monkeypatch):
    class Faulty:
        def __del__(self):
            raise ValueError("no")

    told = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: told.append(what.exc_type))
    with raised_by_signals():
        Faulty()
    assert told == [ValueError]
