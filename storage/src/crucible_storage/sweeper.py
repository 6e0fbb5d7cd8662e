"""Takes expired leases back, carefully: a wrong clock must never lead to two live attempts."""

import asyncio
import logging

from crucible_rpc.errors import CallError
from crucible_storage.clock import Clock
from crucible_storage.leases import Leases
from crucible_storage.policy import Policy

INTERVAL = 0.5
_STEP = 1_000_000  # µs by which the wall clock may differ from the monotonic one between two looks
_LOG = logging.getLogger(__name__)


class Sweeper:
    """Sweeps every half second, but not in the first `Policy.fence` after the start or after a step of the clock.

    Renewals are stored by the wall clock, which somebody may set while storage is down or running. After that wait
    every live worker has renewed its leases by the clock as it is now, and every run of a dead one has ended by itself.
    """

    def __init__(self, leases: Leases, policy: Policy, clock: Clock) -> None:
        self._leases = leases
        self._clock = clock
        self._hold = policy.fence.total_seconds()
        self._wall = clock.now()
        self._steady = clock.monotonic()
        self._not_before = self._steady + self._hold

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.look()
            except CallError as error:
                _LOG.warning("leases could not be swept: %s", error)
            except Exception:
                _LOG.exception("leases could not be swept; trying again")  # without a sweeper, lost work never ends

    async def look(self) -> int:
        """Sweeps once if it is safe; answers how many attempts were ended."""
        wall, steady = self._clock.now(), self._clock.monotonic()
        stepped = (wall - self._wall) - (steady - self._steady) * 1e6
        self._wall, self._steady = wall, steady
        if abs(stepped) > _STEP:
            _LOG.warning("the clock was set by %.1f s; expired leases wait for %.0f s", stepped / 1e6, self._hold)
            self._not_before = steady + self._hold
        if steady < self._not_before:
            return 0
        return await self._leases.sweep()
