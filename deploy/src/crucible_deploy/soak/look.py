"""One look at everything of a stack that must not grow."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy import host
from crucible_deploy.bench import pool, processes
from crucible_deploy.bench.commands import to_the_end
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.private_stack import PrivateStack

EXECUTOR_AND_HELPERS = ("executor", processes.READER)
_QUIET_S = 60.0
_SETTLE_S = 1.0


@dataclass(frozen=True)
class Look:
    """What there was after so many runs.

    Attributes:
        runs: how many had ended.
        figures: by name, as `executor: RSS MiB`.
        processes: whose they are: the ids by name.
    """

    runs: int
    figures: dict[str, float]
    processes: dict[str, int]


async def look(stack: PrivateStack, runs: int, waiting: int) -> Look:
    """Waits until nothing runs and `waiting` sandboxes wait, then looks.

    Raises:
        BenchError: something of an ended run does not go away.
    """
    left = await to_the_end(lambda: host.wait_for_none(stack.layout, _QUIET_S, spare_waiting=True))
    if left:
        raise BenchError(f"left on the host after {runs} runs: {left}")
    await pool.until_full(stack, waiting)
    await asyncio.sleep(_SETTLE_S)  # buffers that are given back late are not growth
    ours = processes.of_stack(stack)
    return Look(runs, await to_the_end(lambda: dict(_figures(stack, ours))), ours)


def _figures(stack: PrivateStack, ours: Mapping[str, int]) -> Iterator[tuple[str, float]]:
    for name, pid in ours.items():
        yield f"{name}: RSS MiB", processes.resident_mib(pid)
        yield f"{name}: PSS MiB", processes.pss_mib([pid])
        yield f"{name}: descriptors", processes.descriptors(pid)
        yield f"{name}: threads", sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    yield "executor: children", len(processes.children(stack.pid("executor")))
    traces = host.traces(stack.layout)
    yield "sandboxes: processes", len(traces.processes)
    yield "sandboxes: cgroups", len(traces.cgroups)
    yield "sandboxes: mounts", len(traces.mounts)
    yield "sandboxes: files", _files(stack.layout.sandboxes)[0]
    yield "executor: mounts it sees", len(Path(f"/proc/{stack.pid('executor')}/mountinfo").read_text().splitlines())
    for process in ("executor", "storage"):
        count, size = _files(stack.layout.state(process))
        yield f"{process}: files of its state", count
        yield f"{process}: MiB of its state", size / (1 << 20)


def _files(folder: Path) -> tuple[int, int]:
    """How many files there are below a folder, and their bytes."""
    count = size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                size += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:  # gone meanwhile
                continue
            count += 1
    return count, size
