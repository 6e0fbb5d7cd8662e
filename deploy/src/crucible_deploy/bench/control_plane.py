"""What everything but the sandbox costs: evaluations by the engine without one."""

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
    ours = processes.of_stack(stand.stack)
    await load.many(stand.client, [nothing()] * 50, CONCURRENCY)  # caches warm, modules loaded
    before = {name: processes.cpu_ms(pid) for name, pid in ours.items()}
    done = await load.many(stand.client, [nothing()] * count, CONCURRENCY)
    rows = [Row("control plane: evaluations", done.per_second, "per s", note=f"{count}, {CONCURRENCY} at once")]
    for name, pid in ours.items():
        used = processes.cpu_ms(pid) - before[name]
        rows.append(Row(f"control plane: CPU of {name}", used / count, "ms per evaluation"))
    return Measured(tuple(rows))
