"""Deletes by itself what is older than it is kept, a little at a time."""

import asyncio
import logging

from crucible_storage.clock import Clock
from crucible_storage.deletion import Deletion, Keep
from crucible_storage.regularly import regularly
from crucible_storage.usage_samples import Samples

INTERVAL = 60.0
PAUSE = 0.05  # between two transactions: other writes go first
HOLD = 3600.0
_STEP = 60_000_000  # µs by which the wall clock may differ from the monotonic one between two looks
_LOG = logging.getLogger(__name__)


class Retention:
    """Looks once a minute, but not for an hour after the wall clock was set: a wrong clock would delete everything."""

    def __init__(self, deletion: Deletion, samples: Samples, keep: Keep, clock: Clock) -> None:
        self._deletion = deletion
        self._samples = samples
        self._keep = keep
        self._clock = clock
        self._wall, self._steady = clock.now(), clock.monotonic()
        self._not_before = self._steady

    async def run(self) -> None:
        """Deletes until cancelled."""
        await regularly(INTERVAL, self.look, "old evaluations could not be deleted")

    async def look(self) -> int:
        """Deletes all evaluations that are old enough now, and ages their samples; answers how many were deleted."""
        wall, steady = self._clock.now(), self._clock.monotonic()
        stepped = (wall - self._wall) - (steady - self._steady) * 1e6
        self._wall, self._steady = wall, steady
        if abs(stepped) > _STEP:
            _LOG.warning("the clock was set by %.0f s; nothing is deleted by age for an hour", stepped / 1e6)
            self._not_before = steady + HOLD
        if steady < self._not_before:
            return 0
        total = 0
        passed_over: set[int] = set()
        while deleted := await self._deletion.delete_aged(self._keep, passed_over):
            total += deleted
            await asyncio.sleep(PAUSE)
        if total:
            _LOG.info("deleted %d evaluations that were older than they are kept", total)
        aged = 0
        while some := await self._samples.age():
            aged += some
            await asyncio.sleep(PAUSE)
        if aged:
            _LOG.info("downsampled or removed the usage samples of %d attempts", aged)
        return total
