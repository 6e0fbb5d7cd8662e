"""The fair share between tenants: who is served next, by weight and running work.

Each tenant has a meter of the slot time that it had, in seconds, divided by its weight. The tenant with the smallest
meter is served next, where each of its runs that are under way counts as `AHEAD` seconds in advance, divided by the
weight too. So with many slots the runs under way are shared by weight, whatever the tenants have queued; with fewer
slots than tenants their time is. Each run counts `LEASE` seconds more than it takes, so that none is free.

The past counts only so far: no meter of those who have work lies more than `HISTORY` seconds behind the largest, so
that nobody who could not be served takes every slot for a long time afterwards. Who comes anew begins with the
smallest. With S slots and a sum W of the others' weights, a tenant with work and nothing under way is therefore served
at the latest once the others had `HISTORY` x W / S seconds of all slots, and a run has ended.

Meters are remembered for the life of the process and decide an order, nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass

AHEAD = 10.0
HISTORY = 30.0
LEASE = 0.005
_LONGEST_STEP = 60_000_000  # µs: what was under way so long ago may have ended at any time since
_KEPT = 1024


@dataclass(slots=True)
class Share:
    """One tenant with work.

    Attributes:
        tenant: who.
        weight: its part.
        running: its runs under way.
        max_running: as many may be; 0: any number.
    """

    tenant: str
    weight: int
    running: int
    max_running: int = 0

    @property
    def full(self) -> bool:
        """Whether nothing more of it may be started now."""
        return 0 < self.max_running <= self.running


@dataclass(slots=True)
class _Meter:
    used: float
    rate: float
    time: int


class Fairness:
    """The meters of all tenants."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    def begin(self, shares: Iterable[Share], now: int) -> None:
        """Brings the meters of those who have work up to `now` (µs)."""
        shares = list(shares)
        known = [meter.used for share in shares if (meter := self._advanced(share.tenant, now)) is not None]
        least = max(known, default=0.0) - HISTORY
        newcomer = max(min(known, default=0.0), least)
        for share in shares:
            meter = self._meters.setdefault(share.tenant, _Meter(newcomer, 0.0, now))
            meter.used = max(meter.used, least)
            meter.rate = share.running / share.weight
        if len(self._meters) > _KEPT + 2 * len(shares):
            self._meters = {share.tenant: self._meters[share.tenant] for share in shares}

    def next(self, shares: Iterable[Share]) -> Share | None:
        """Who is served next of those who may have more under way; None when nobody may."""
        return min((share for share in shares if not share.full), key=self._place, default=None)

    def served(self, share: Share) -> None:
        """Notes that one more run of the tenant is under way."""
        meter = self._meters[share.tenant]
        share.running += 1
        meter.used += LEASE / share.weight
        meter.rate = share.running / share.weight

    def _place(self, share: Share) -> tuple[float, str]:
        return self._meters[share.tenant].used + AHEAD * share.running / share.weight, share.tenant

    def _advanced(self, tenant: str, now: int) -> _Meter | None:
        meter = self._meters.get(tenant)
        if meter is not None:
            meter.used += meter.rate * min(max(now - meter.time, 0), _LONGEST_STEP) / 1e6
            meter.time = now
        return meter
