"""The load of `queue_simulation`: who sends how much, when; the same for the same seed."""

import random
from dataclasses import dataclass

from crucible_storage.policy import Policy
from crucible_storage.queue import rank_of

SECOND = 1_000_000
HOUR = 3600 * SECOND
START = 1_800_000_000 * SECOND
LONGEST_RUN = 60.0
POLICY = Policy()
_PRIORITIES = (-100, -20, 0, 0, 0, 0, 20, 100)


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """What one tenant sends.

    Attributes:
        name: its name.
        weight: see `Quota.weight`.
        max_running: see `Quota.max_running`.
        per_hour: evaluations that come evenly spread, by chance.
        bursts: the hour of each, and how many come at once then.
    """

    name: str
    weight: int
    per_hour: float = 0.0
    bursts: tuple[tuple[float, int], ...] = ()
    max_running: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """A load, and the slots that take it."""

    hours: float
    slots: int
    tenants: tuple[TenantLoad, ...]

    @property
    def weights(self) -> int:
        """Of all tenants together."""
        return sum(one.weight for one in self.tenants)


DAY = Load(
    hours=24,
    slots=32,
    tenants=(
        TenantLoad("steady", 1, per_hour=3000),
        TenantLoad("team", 2, per_hour=3000, bursts=((9, 12_000), (14, 12_000))),
        TenantLoad("nightly", 1, bursts=((1, 60_000), (13, 20_000))),
        TenantLoad("paying", 4, per_hour=500, bursts=tuple((hour, 5000) for hour in range(0, 24, 3))),
        TenantLoad("small", 1, bursts=tuple((minutes / 60, 20) for minutes in range(5, 1440, 10))),
        TenantLoad("limited", 1, per_hour=1500, max_running=4),
    ),
)
SHORT = Load(
    hours=0.5,
    slots=8,
    tenants=(
        TenantLoad("steady", 1, per_hour=900),
        TenantLoad("nightly", 2, bursts=((0.05, 1200),)),
        TenantLoad("paying", 4, bursts=((0.02, 800), (0.2, 800))),
        TenantLoad("small", 1, bursts=tuple((minutes / 60, 5) for minutes in range(1, 30, 5))),
        TenantLoad("limited", 1, per_hour=400, max_running=1),
    ),
)


@dataclass(slots=True)
class Job:
    """One evaluation; times in µs. `place`, `leased` and `ahead` are filled in as it goes through the queue."""

    seq: int
    tenant: str
    priority: int
    created: int
    length: int
    rank: int
    place: int = 0
    leased: int = 0
    ahead: float = 0.0

    @property
    def waited(self) -> float:
        """Seconds."""
        return (self.leased - self.created) / SECOND


def arrivals(load: Load, seed: int) -> list[Job]:
    """All evaluations of a load in the order in which they come; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311
    times: list[tuple[int, str]] = []
    for tenant in load.tenants:
        spread = int(tenant.per_hour * load.hours)
        times += [(int(chance.uniform(0, load.hours) * HOUR), tenant.name) for _ in range(spread)]
        for hour, count in tenant.bursts:
            times += [(int((hour + chance.uniform(0, 0.01)) * HOUR), tenant.name) for _ in range(count)]
    jobs = []
    for seq, (time, name) in enumerate(sorted(times), 1):
        priority = chance.choice(_PRIORITIES)
        length = int(min(max(0.05, chance.lognormvariate(1.1, 1.0)), LONGEST_RUN) * SECOND)
        created = START + time
        jobs.append(Job(seq, name, priority, created, length, rank_of(created, priority, POLICY)))
    return jobs
