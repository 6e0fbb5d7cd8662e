"""How much work may be asked for: what no run occupies, less what was asked for already, and nothing during a pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crucible.storage.v1 import work_service_pb2 as work

FIRST_REFUSAL_PAUSE_SECONDS = 0.5
LONGEST_REFUSAL_PAUSE_SECONDS = 10.0


class Slots:
    """The free slots of an executor.

    Args:
        free: how many no run occupies.
        clock: seconds; never goes back.

    Attributes:
        changed: set when there may be more to ask for.
    """

    def __init__(self, free: Callable[[], int], clock: Callable[[], float]) -> None:
        self.changed = asyncio.Event()
        self._free = free
        self._clock = clock
        self._asked = 0
        self._announced = 0
        self._refusal_pause = 0.0
        self._from = clock()

    @property
    def pause_left(self) -> float:
        """Seconds for which nothing may be asked for; 0 or less: there is no pause."""
        return self._from - self._clock()

    @property
    def unasked(self) -> int:
        """How many are free and not asked for, pause or not."""
        return max(0, self._free() - self._asked)

    @property
    def unannounced(self) -> int:
        """The same, without those that a report will ask for in a moment."""
        return max(0, self._free() - self._asked - self._announced)

    def announce(self) -> None:
        """A run has ended: its report, which goes at once, will ask for its slot."""
        self._announced += 1

    def reported(self) -> None:
        """All ends so far are in reports that ask, or in none that will."""
        self._announced = 0

    @contextmanager
    def asking(self, count: int) -> Iterator[None]:
        """Inside the block so much is being asked for; what came of it must be counted as occupied before its end."""
        self._asked += count
        try:
            yield
        finally:
            self._asked -= count
            if count:
                self.changed.set()

    def hold_back(self, refused: work.Refused) -> None:
        """An executor that refuses everything must not get the whole queue to refuse, nor cost it its attempts."""
        now = self._clock()
        if not refused.failed_attempt:
            self._from = max(self._from, now + refused.retry_after.ToTimedelta().total_seconds())
        elif now >= self._from:  # those of one lease call count once
            longer = min(2 * self._refusal_pause, LONGEST_REFUSAL_PAUSE_SECONDS)
            self._refusal_pause = max(longer, FIRST_REFUSAL_PAUSE_SECONDS)
            self._from = now + self._refusal_pause

    def taken(self) -> None:
        """The executor took a run: the next refusal is a first one."""
        self._refusal_pause = 0.0
