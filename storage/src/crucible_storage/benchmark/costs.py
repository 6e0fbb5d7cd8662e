"""What a call costs in a full database, beside the same call in a small one, the two used in turn."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crucible_storage.benchmark import audit
from crucible_storage.benchmark.audit import Audit
from crucible_storage.benchmark.played import Bench, opened

CALLS = ("get", "page", "create", "lease")


@dataclass(frozen=True, slots=True)
class Cost:
    """Median milliseconds of one call over the smaller and the larger database."""

    small_ms: float
    large_ms: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What was found.

    Attributes:
        small: evaluations that wait in the smaller database.
        large: that wait in the larger one.
        samples: calls of each kind to each.
        filled_per_s: how many per second were created in batches until the larger one was full.
        costs: by call.
        lease_p99_ms: of a lease of one from the larger one.
        audit: the audit log of the larger one, with a record for each creation.
    """

    small: int
    large: int
    samples: int
    filled_per_s: float
    costs: dict[str, Cost]
    lease_p99_ms: float
    audit: Audit


async def measure(folder: Path, url: str, small: int, large: int, samples: int) -> Costs:
    """`samples` calls of each kind; a p99 wants at least 100, and `small` more of them. See `played.opened`."""
    async with opened(folder, url, "small") as few, opened(folder, url, "large") as many:
        await few.fill(small)
        seconds = await many.fill(large)
        for bench in (few, many):
            await bench.look_round(samples)
        taken = await _taken(few, many, samples)
        audited = await audit.measure(many)
    costs = {name: Cost(at(one, 0.5), at(other, 0.5)) for name, (one, other) in taken.items()}
    return Costs(small, large, samples, large / seconds, costs, at(taken["lease"][1], 0.99), audited)


async def _taken(few: Bench, many: Bench, samples: int) -> dict[str, tuple[list[float], list[float]]]:
    """The milliseconds of each call to both."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CALLS}
    for number in range(samples):
        for name in CALLS:
            for which in (0, 1) if number % 2 else (1, 0):
                taken[name][which].append(await _timed(getattr((few, many)[which], name)))
    return taken


async def _timed(call: Callable[[], Awaitable[None]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000


def at(values: Sequence[float], share: float) -> float:
    """The value below which this share of all lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
