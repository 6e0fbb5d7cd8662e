"""How many evaluations storage takes, and brings from their creation to their end, in a second."""

import resource
from dataclasses import dataclass
from pathlib import Path

from crucible_storage.benchmark.played import LIVE_WORKERS, SLOTS, opened


@dataclass(frozen=True, slots=True)
class Rates:
    """All in evaluations per second.

    Attributes:
        batched_per_s: created in batches.
        created_per_s: created each by a call, many calls at once.
        lived_per_s: through create, lease, start and end, as workers with many slots bring them.
        lived_cpu_ms: CPU of this process for each of these, with the signatures of what plays the executor.
    """

    batched_per_s: float
    created_per_s: float
    lived_per_s: float
    lived_cpu_ms: float


async def measure(folder: Path, url: str, count: int) -> Rates:
    """Rates of `count` evaluations each, in whole rounds of all workers; of batches, five times as many.

    See `played.opened` for the rest.
    """
    round_ = LIVE_WORKERS * SLOTS
    count = max(round_, count // round_ * round_)
    async with opened(folder, url, "rates") as bench:
        await bench.live(2 * round_)  # modules and statements are ready
        cpu = _cpu_s()
        lived = await bench.live(count)
        cpu = _cpu_s() - cpu
        created = await bench.create_many(count)
        batched = await bench.fill(5 * count)
    return Rates(5 * count / batched, count / created, count / lived, cpu / count * 1000)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
