"""What everything but an engine costs: evaluations by an engine that runs nothing, one call each and in one batch."""

import os
import time
from collections.abc import Mapping

from crucible_client import AsyncClient, EvaluationSpec, File, Program, State
from crucible_deploy.bench import load, processes
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.stand import Stand
from crucible_deploy.stack import Options

CONCURRENCY = 20
_LEAD = 50


def nothing() -> EvaluationSpec:
    """An evaluation of which nothing is run."""
    return EvaluationSpec(Program("bash", (File("main.sh", b"true\n"),)), engine="nothing")


async def measure(stand: Stand) -> Measured:
    """The rates, and the CPU time of each process per evaluation, on a stack of its own."""
    singles, items = stand.sizes.control, stand.sizes.control_batch
    async with stand.another(Options(slots=CONCURRENCY, pool=0, runs_nothing=True)) as (stack, client):
        await load.many(client, [nothing()] * _LEAD, CONCURRENCY)  # caches warm, modules loaded
        await _in_a_batch(client, _LEAD)
        ours = processes.of_stack(stack) | {"the client": os.getpid()}
        found = []
        before = _cpu_ms(ours)
        done = await load.many(client, [nothing()] * singles, CONCURRENCY)
        note = f"{singles}, one call each, {CONCURRENCY} at once"
        found += rows("control plane", note, singles, done.seconds, _since(before, ours))
        before = _cpu_ms(ours)
        seconds = await _in_a_batch(client, items)
        found += rows("control plane, batch", f"{items}, with their results", items, seconds, _since(before, ours))
    return Measured(tuple(found))


async def _in_a_batch(client: AsyncClient, count: int) -> float:
    """Seconds from the first item that the client is given to the last result."""
    began, ended = time.perf_counter(), 0
    async for result in client.run_batch([nothing()] * count):
        if result.evaluation.state is not State.SUCCEEDED:
            raise BenchError(f"{result.evaluation.name} did not succeed: {result.evaluation.termination}")
        ended += 1
    if ended != count:
        raise BenchError(f"{count} items were sent and {ended} results came")
    return time.perf_counter() - began


def _cpu_ms(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: processes.cpu_ms(pid) for name, pid in pids.items()}


def _since(before: Mapping[str, float], pids: Mapping[str, int]) -> dict[str, float]:
    return {name: now - before[name] for name, now in _cpu_ms(pids).items()}


def rows(what: str, note: str, count: int, seconds: float, cpu_ms: Mapping[str, float]) -> list[Row]:
    """The figures of `count` evaluations; `cpu_ms` is what each process used for all of them."""
    rate, together = count / seconds, sum(cpu_ms.values()) / count
    found = [Row(f"{what}: evaluations", rate, "per s", target=">= 150", met=rate >= 150, note=note)]
    found += [Row(f"{what}: CPU of {name}", ms / count, "ms per evaluation") for name, ms in cpu_ms.items()]
    name = f"{what}: CPU of all, with the client"
    found.append(Row(name, together, "ms per evaluation", target="<= 10 ms", met=together <= 10))
    return found
