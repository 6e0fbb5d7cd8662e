"""Programs per second under a lasting load, beside `xargs -P4 runsc run`, and the CPU time that our processes take.

What waits in the pool when a round begins was booted before it, so a lead of programs uses it up, uncounted; of those
that are under way when the lead ends a share is counted.
"""

from dataclasses import dataclass

from crucible_deploy.bench import load, processes
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.stand import POOL, WIDE, Stand

_LEAD = POOL + WIDE
_WITHOUT_SHARE = 3
"""A third as many programs without a pool: they only show that the pool costs nothing under load."""


@dataclass(frozen=True)
class Rates:
    """What was measured, over all rounds.

    Attributes:
        ours: the stack with a pool.
        without: the stack without.
        bare_per_second: runsc alone.
        bare_runs: how many of these.
        cpu_ms: CPU time of each process of ours while the counted programs ran, together.
    """

    ours: load.Many
    without: load.Many
    bare_per_second: float
    bare_runs: int
    cpu_ms: dict[str, float]


async def measure(stand: Stand) -> Measured:
    """Rounds of the stack with a pool, the one without, and runsc alone, on the same cores."""
    rounds, per_round = stand.sizes.rounds, stand.sizes.throughput // stand.sizes.rounds
    ours: list[load.Many] = []
    without: list[load.Many] = []
    bare_s = 0.0
    cpu: dict[str, float] = {}
    for number in range(rounds):
        await stand.full()
        before: dict[str, float] = {}
        specs = [load.trivial()] * (_LEAD + per_round)
        ours.append(
            await load.many(stand.client, specs, WIDE, lead=_LEAD, on_counting=lambda: before.update(_cpu(stand)))  # noqa: B023
        )
        for name, used in _cpu(stand).items():
            cpu[name] = cpu.get(name, 0.0) + used - before[name]
        # What the pool boots after a load is its own, not the next measurement's.
        await stand.full()
        few = max(WIDE + 1, per_round // _WITHOUT_SHARE)
        without.append(await load.many(stand.cold, [load.trivial()] * (WIDE + few), WIDE, lead=WIDE))
        bare_s += await stand.bare.many(f"many{number}", per_round, WIDE)
    runs = rounds * per_round
    return Measured(tuple(rows(Rates(load.combined(ours), load.combined(without), runs / bare_s, runs, cpu))))


def rows(rates: Rates) -> list[Row]:
    """The figures."""
    ours, without, bare = rates.ours.per_second, rates.without.per_second, rates.bare_per_second
    runs = len(rates.ours.done)
    name = f"throughput of trivial programs, {WIDE}-wide"
    found = [
        Row(
            name, ours, "per s", bare, f"xargs -P {WIDE} runsc run", ">= 0.9 x", met=ours >= 0.9 * bare,
            note=f"{runs} and {rates.bare_runs} runs, {rates.ours.warm} of ours warm",
        ),
        Row(name, ours, "per s", without, "without a pool", ">= 0.97 x", met=ours >= 0.97 * without),
    ]  # fmt: skip
    for process, used in rates.cpu_ms.items():
        found.append(Row(f"CPU per run of {process}", used / rates.ours.programs, "ms"))
    together = sum(rates.cpu_ms.values()) / rates.ours.programs
    found.append(Row("CPU per run of all our processes", together, "ms", target="<= 25 ms", met=together <= 25))
    return found


def _cpu(stand: Stand) -> dict[str, float]:
    return {name: processes.cpu_ms(pid) for name, pid in processes.of_stack(stand.stack).items()}
