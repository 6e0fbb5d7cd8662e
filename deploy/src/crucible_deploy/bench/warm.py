"""One program at a time, with the pool full: the whole stack's latency, beside a warm sandbox made by hand."""

import asyncio
from collections.abc import Sequence

from crucible_deploy.bench import load
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.samples import p50, p99
from crucible_deploy.bench.stand import Stand

PAUSE_S = 0.7
_MOST_MISSED = 0.01


async def measure(stand: Stand) -> Measured:
    """Latencies of `RunEvaluation`, warm and cold, each interleaved with its baseline."""
    sizes = stand.sizes
    await stand.full()
    warm: list[load.Done] = []
    by_hand: list[float] = []
    cold: list[float] = []
    bare: list[float] = []
    for number in range(sizes.singles):
        # What replaces the last one boots while this one does; both wait when the pause is over.
        pause = asyncio.create_task(asyncio.sleep(PAUSE_S))
        async with stand.bare.waiting(f"hand{number}") as hand:
            await pause
            if number % 2:
                warm.append(await load.one(stand.client))
                by_hand.append(await hand.run() * 1000)
            else:
                by_hand.append(await hand.run() * 1000)
                warm.append(await load.one(stand.client))
        if number % sizes.cold_every == 0:
            await asyncio.sleep(PAUSE_S)
            cold.append((await load.one(stand.cold)).ms)
            bare.append(await stand.bare.once(f"single{number}") * 1000)
    return Measured(tuple(rows(warm, by_hand, cold, bare)))


def rows(
    warm: Sequence[load.Done], by_hand: Sequence[float], cold: Sequence[float], bare: Sequence[float]
) -> list[Row]:
    """The figures; times in milliseconds.

    Args:
        warm: of the stack with a pool, whatever start each had.
        by_hand: of warm sandboxes made by hand, interleaved with `warm`.
        cold: of the stack without a pool.
        bare: of `runsc run`, interleaved with `cold`.
    """
    taken = [one.ms for one in warm]
    missed = sum(not one.warm for one in warm)
    few = "" if len(warm) >= 100 else ": too few for a p99"
    count, cold_count = f"{len(warm)} runs", f"{len(cold)} runs"
    hand, run = "a warm sandbox by hand", "one runsc run"
    over = p50(taken) - p50(by_hand)
    most = _MOST_MISSED * len(warm)
    return [
        Row(
            "p50 of one RunEvaluation, warm", p50(taken), "ms", p50(by_hand), hand, "<= 30 ms",
            met=p50(taken) <= 30, note=count,
        ),
        Row(
            "p99 of one RunEvaluation, warm", p99(taken), "ms", p99(by_hand), hand, "<= 100 ms",
            met=p99(taken) <= 100, note=count + few,
        ),
        Row("p50 over a warm sandbox by hand", over, "ms", target="<= 15 ms", met=over <= 15, note=count),
        Row("of these, not warm", missed, f"of {len(warm)}", target="<= 1 %", met=missed <= most),
        Row(
            "p50 of one RunEvaluation, cold", p50(cold), "ms", p50(bare), run, "<= 1.3 x",
            met=p50(cold) <= 1.3 * p50(bare), note=cold_count,
        ),
        Row("p99 of one RunEvaluation, cold", p99(cold), "ms", p99(bare), run, note=cold_count),
    ]  # fmt: skip
