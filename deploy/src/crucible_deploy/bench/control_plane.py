"""What everything but the sandbox costs: evaluations by the engine without one."""

import os
from collections.abc import Mapping

from crucible_client import EvaluationSpec, File, Program
from crucible_deploy.bench import load, processes
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.stand import Stand

CONCURRENCY = 20


def nothing() -> EvaluationSpec:
    """An evaluation that does nothing, in no sandbox."""
    return EvaluationSpec(Program("bash", (File("main.sh", b"true\n"),)), engine="subprocess")


async def measure(stand: Stand) -> Measured:
    """The rate, and the CPU time of each process per evaluation."""
    count = stand.sizes.control
    ours = processes.of_stack(stand.stack) | {"the client": os.getpid()}
    await load.many(stand.client, [nothing()] * 50, CONCURRENCY)  # caches warm, modules loaded
    before = {name: processes.cpu_ms(pid) for name, pid in ours.items()}
    done = await load.many(stand.client, [nothing()] * count, CONCURRENCY)
    used = {name: processes.cpu_ms(pid) - before[name] for name, pid in ours.items()}
    return Measured(tuple(rows(done, used)))


def rows(done: load.Many, cpu_ms: Mapping[str, float]) -> list[Row]:
    """The figures; `cpu_ms` is what each process used for all of `done`."""
    count = len(done.done)
    rate, together = done.per_second, sum(cpu_ms.values()) / count
    found = [
        Row(
            "control plane: evaluations", rate, "per s", target=">= 150", met=rate >= 150,
            note=f"{count}, {CONCURRENCY} at once",
        )
    ]  # fmt: skip
    found += [Row(f"control plane: CPU of {name}", ms / count, "ms per evaluation") for name, ms in cpu_ms.items()]
    name = "control plane: CPU of all, with the client"
    found.append(Row(name, together, "ms per evaluation", target="<= 10 ms", met=together <= 10))
    return found
