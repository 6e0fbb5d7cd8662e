"""Memory of our processes, idle and after thousands of evaluations that are watched from beginning to end."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing

from crucible_client import AsyncClient, EvaluationSpec, File, Program
from crucible_deploy.bench import processes
from crucible_deploy.bench.control_plane import CONCURRENCY
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.stand import Stand


def unisolated() -> EvaluationSpec:
    """An evaluation that does nothing, in no sandbox: what is measured is not its."""
    return EvaluationSpec(Program("bash", (File("main.sh", b"true\n"),)), engine="subprocess")


async def measure(stand: Stand) -> Measured:
    """Looks after one and after two steps: what the first step brought is warming up, the second is growth."""
    step = stand.sizes.memory_step
    seen = []
    for _ in range(2):
        await _watched(stand.client, step)
        await asyncio.sleep(1)  # what was under way settles: buffers that are given back late are not growth
        seen.append({name: processes.resident_mib(pid) for name, pid in processes.of_stack(stand.stack).items()})
    return Measured(tuple(rows(step, stand.resident_mib, seen)))


def rows(step: int, idle: Mapping[str, float], seen: Sequence[Mapping[str, float]]) -> list[Row]:
    """The figures, in MiB by process: before anything ran, and after each step."""
    found = []
    for name, second in seen[-1].items():
        first = seen[0][name]
        if name in idle:
            found.append(Row(f"memory of {name}, idle", idle[name], "MiB"))
        base = f"after {step}"
        title = f"memory of {name}, after {2 * step}"
        found.append(Row(title, second, "MiB", first, base, "<= 1.05 x", met=second <= 1.05 * first))
    return found


async def _watched(client: AsyncClient, count: int) -> None:
    """Runs `count` evaluations, each watched by one of the watchers from its beginning to its end."""
    left: Iterator[int] = iter(range(count))

    async def watcher() -> None:
        for _ in left:
            evaluation = await client.submit(unisolated())
            async with aclosing(client.watch(evaluation.name)) as events:
                async for _event in events:
                    pass

    watchers = [asyncio.create_task(watcher()) for _ in range(CONCURRENCY)]
    try:
        await asyncio.gather(*watchers)
    finally:
        for one in watchers:
            one.cancel()
