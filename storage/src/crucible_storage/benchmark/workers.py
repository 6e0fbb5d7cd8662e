"""Workers on one queue, with an engine that returns at once: whether each evaluation runs once, and what more bring."""

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from crucible_storage.benchmark.played import TENANT, Bench, opened
from crucible_storage.lifecycle import SUCCEEDED

NUMBERS = (1, 2, 4, 8)
ROUNDS = 5
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Workers:
    """What was found.

    Attributes:
        queued: evaluations in the queue at first.
        lost: of these, how many did not end.
        run_twice: how many were given to a worker more than once.
        per_s: ends per second, by the number of workers: the median of `ROUNDS`, taken in turn.
    """

    queued: int
    lost: int
    run_twice: int
    per_s: dict[int, float]


async def measure(folder: Path, url: str, queued: int) -> Workers:
    """Works the whole queue off. See `played.opened`."""
    given: Counter[str] = Counter()
    rates: dict[int, list[float]] = {number: [] for number in NUMBERS}
    async with opened(folder, url, "workers") as bench:
        await bench.fill(queued)
        await bench.service.sealer.seal()
        share = queued // (ROUNDS * len(NUMBERS))
        for turn in range(ROUNDS):
            for number in NUMBERS if turn % 2 else reversed(NUMBERS):
                rates[number].append(share / await _work_off(bench, number, share, given))
        await _work_off(bench, NUMBERS[-1], queued - share * ROUNDS * len(NUMBERS), given)
        ended = (await bench.service.evaluations.counts(TENANT)).get(SUCCEEDED, 0)
    twice = sum(times > 1 for times in given.values())
    return Workers(queued, queued - ended, twice, {number: statistics.median(rates[number]) for number in NUMBERS})


async def _work_off(bench: Bench, number: int, count: int, given: Counter[str]) -> float:
    """Has so many workers run so many evaluations; answers the seconds."""
    left = count

    async def worker(which: int) -> None:
        nonlocal left
        while left:
            most = min(_AT_ONCE, left)
            left -= most
            done = await bench.run_some(which, most)
            given.update(one.evaluation for one in done)
            left += most - len(done)
            if not done:
                raise RuntimeError("a worker was given nothing from a queue that has work")

    begun = time.perf_counter()
    await asyncio.gather(*(worker(which) for which in range(number)))
    return time.perf_counter() - begun
