"""What sandboxes cost that only wait: memory of all their processes, and CPU time."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy import host
from crucible_deploy.bench import processes
from crucible_deploy.bench.commands import to_the_end
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.stand import POOL, Stand

_SETTLE_S = 1.0


@dataclass(frozen=True)
class Waiting:
    """What waiting sandboxes used.

    Attributes:
        pss_mib: of each, all its processes together.
        cpu_percent: of one core, of each, on average while it was looked at.
        seconds: how long that was.
    """

    pss_mib: tuple[float, ...]
    cpu_percent: tuple[float, ...]
    seconds: float


async def measure(stand: Stand) -> Measured:
    """Looks at a full pool that nobody uses."""
    await stand.full()
    await asyncio.sleep(_SETTLE_S)
    cgroups = await to_the_end(lambda: _cgroups(stand))
    if len(cgroups) != POOL:
        raise BenchError(f"{len(cgroups)} sandboxes are frozen, {POOL} should wait")
    ours = processes.of_stack(stand.stack)
    began, before = time.monotonic(), [processes.cgroup_cpu_s(one) for one in cgroups]
    ours_before = sum(map(processes.cpu_ms, ours.values()))
    await asyncio.sleep(stand.sizes.idle_s)
    used = [processes.cgroup_cpu_s(one) - earlier for one, earlier in zip(cgroups, before, strict=True)]
    ours_used = sum(map(processes.cpu_ms, ours.values())) - ours_before
    seconds = time.monotonic() - began
    memory = await to_the_end(lambda: [processes.pss_mib(_members(one)) for one in cgroups])
    found = Waiting(tuple(memory), tuple(100 * one / seconds for one in used), seconds)
    return Measured((*rows(found), Row("CPU of our idle processes, together", ours_used / seconds / 10, "% of a core")))


def rows(found: Waiting) -> list[Row]:
    """The figures."""
    worst = max(found.cpu_percent)
    mean = sum(found.cpu_percent) / len(found.cpu_percent)
    count = f"{len(found.cpu_percent)} waiting, {found.seconds:.0f} s"
    return [
        Row("memory of an idle warm sandbox, PSS", sum(found.pss_mib) / len(found.pss_mib), "MiB", note=count),
        Row("memory of the largest, PSS", max(found.pss_mib), "MiB"),
        Row("CPU of an idle warm sandbox", mean, "% of a core", target="<= 0.3 %", met=mean <= 0.3, note=count),
        Row("CPU of the busiest", worst, "% of a core", target="<= 0.3 %", met=worst <= 0.3),
    ]


def _cgroups(stand: Stand) -> list[list[Path]]:
    """The cgroups of each waiting sandbox, in every hierarchy."""
    layout = stand.stack.layout
    return [
        [folder / name for folder in host.cgroup_folders(layout) if (folder / name).is_dir()]
        for name in sorted(host.waiting_sandboxes(layout))
    ]


def _members(cgroups: list[Path]) -> set[int]:
    return {pid for cgroup in cgroups for pid in processes.members(cgroup)}
