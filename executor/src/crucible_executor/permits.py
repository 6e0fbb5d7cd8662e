"""Leave to go on: a run whose permit ends is ended, so that none outlives the worker or storage that wanted it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta


class Permit:
    """One run's permit on the event loop's clock, which wall-clock jumps do not move.

    Args:
        lasts: from now.
        longest: no permit is ever longer (the executor's `orphan_grace`).
        on_expired: called once, on the loop, when it ends.
    """

    def __init__(self, lasts: timedelta, *, longest: timedelta, on_expired: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._longest = longest
        self._on_expired = on_expired
        self._deadline = self._after(lasts)
        self._timer: asyncio.TimerHandle | None = self._loop.call_at(self._deadline, self._fire)

    def extend(self, lasts: timedelta) -> None:
        """Sets the end to `lasts` from now; never brings it forward."""
        self._deadline = max(self._deadline, self._after(lasts))

    def end(self) -> None:
        """The run is over; the permit never expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _after(self, lasts: timedelta) -> float:
        return self._loop.time() + max(0.0, min(lasts, self._longest).total_seconds())

    def _fire(self) -> None:
        # An extension only moves the deadline: one timer per run, re-armed at most once per permit's length.
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._fire)
            return
        self._timer = None
        self._on_expired()
