"""Leave to go on: a run whose permit ends is ended, so that none outlives the worker or storage that wanted it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOK_SECONDS = 1.0
"""A permit is looked at this often: the loop's timers stand still while the machine sleeps, its end does not."""


class Permit:
    """One run's permit.

    Args:
        ends: when, by `clock`.
        clock: see `ExecutorClock.now`.
        on_expired: called once, on the loop, when it has ended.
    """

    def __init__(self, ends: float, *, clock: Callable[[], float], on_expired: Callable[[], None]) -> None:
        self._ends = ends
        self._clock = clock
        self._on_expired = on_expired
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    def extend(self, ends: float) -> bool:
        """Sets the end to `ends`, never to an earlier time; False when the permit has ended, which is for good."""
        if self._timer is None or self._clock() >= self._ends:
            return False  # a process that was stalled may be told this before its own timer
        self._ends = max(self._ends, ends)
        return True

    def end(self) -> None:
        """The run is over; the permit never expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        left = max(0.0, self._ends - self._clock())
        self._timer = asyncio.get_running_loop().call_later(min(left, LOOK_SECONDS), self._look)

    def _look(self) -> None:
        # An extension only moves the end: one timer per run, whatever is told how often.
        if self._clock() < self._ends:
            self._wait()
            return
        self._timer = None
        self._on_expired()
