"""`make bench`: what Crucible costs on this machine, each figure beside its baseline from the same run.

Everything is measured in one private stack; what is compared is interleaved, so that a busy machine is unjust to
neither side. Exit code 0 when all was measured, whether targets were met or not; 1 when something could not be.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

from crucible_client import AsyncClient, CallError, EvaluationSpec, File, Program, State
from crucible_client.results import StartKind
from crucible_deploy.bare_runsc import BareRunsc, BenchError, capture, trivial
from crucible_deploy.bench_report import Row, print_rows
from crucible_deploy.interrupt import cancelled_by_signals
from crucible_deploy.layout import PROCESSES, Layout
from crucible_deploy.prepare import EXPECTED_ERRORS
from crucible_deploy.private_stack import PrivateStack, private_stack
from crucible_deploy.stack import Options

_ROUNDS = 5
_PER_ROUND = 30
_SINGLES = 40
_PAUSE_S = 0.7
_SETTLE_S = 3.0
_CONTROL = 400
_WATCHERS = 20
_MEMORY_STEP = 1000
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Say = Callable[[str], None]


async def bench(common: Layout, say: Say) -> list[Row]:
    """Measures everything.

    Raises:
        BenchError: something cannot be measured.
        PrepareError and its like: the stack cannot be started.
    """
    async with private_stack(common, Options(unsafe=True), say) as stack, stack.client() as client:
        idle = _resident(stack)
        bare = await capture(stack.layout, client)
        say("the same without sandboxes booted ahead, for comparison")
        async with private_stack(common, Options(pool=0), say) as cold_stack, cold_stack.client() as cold:
            say("throughput of trivial programs, against no pool and runsc alone")
            rows = await _throughput(client, cold, bare)
            say(f"latency of a single program every {_PAUSE_S} s, warm, cold and runsc alone")
            rows += await _latency(client, cold, bare)
        say("control plane alone (engine subprocess)")
        rows += await _control_plane(stack, client)
        say(f"memory after {_MEMORY_STEP} and {2 * _MEMORY_STEP} evaluations with {_WATCHERS} watchers")
        rows += await _memory(stack, client, idle)
        return rows


async def _throughput(client: AsyncClient, cold: AsyncClient, bare: BareRunsc) -> list[Row]:
    slots = os.cpu_count() or 1
    seconds = dict.fromkeys(("pool", "no pool", "bare"), 0.0)
    for number in range(_ROUNDS):
        seconds["pool"] += await _run_all(client, [trivial()] * _PER_ROUND, 2 * slots)
        # What the pool boots after a load is its own, not the next measurement's.
        await asyncio.sleep(_SETTLE_S)
        seconds["no pool"] += await _run_all(cold, [trivial()] * _PER_ROUND, 2 * slots)
        seconds["bare"] += await asyncio.to_thread(bare.many, number * _PER_ROUND, _PER_ROUND, slots)
    count = _ROUNDS * _PER_ROUND
    ours, without, theirs = (count / seconds[name] for name in ("pool", "no pool", "bare"))
    name = "throughput of trivial programs"
    xargs = f"xargs -P {slots} runsc run"
    return [
        Row(name, ours, "per s", theirs, xargs, ">= 0.8 x", met=ours / theirs >= 0.8),
        Row(name, ours, "per s", without, "without a pool", ">= 0.97 x", met=ours / without >= 0.97),
    ]


async def _run_all(client: AsyncClient, specs: list[EvaluationSpec], concurrency: int) -> float:
    began = time.monotonic()
    async with aclosing(client.run_many(specs, concurrency=concurrency)) as outcomes:
        async for outcome in outcomes:
            if outcome.evaluation is None or outcome.evaluation.state is not State.SUCCEEDED:
                raise BenchError(f"an evaluation did not succeed: {outcome.error or outcome.evaluation}")
    return time.monotonic() - began


async def _latency(client: AsyncClient, cold: AsyncClient, bare: BareRunsc) -> list[Row]:
    for _ in range(2):  # the second time, an interpreter waits
        await _one(client)
        await asyncio.sleep(_SETTLE_S)
    warm, without, theirs = [], [], []
    missed = 0
    for number in range(_SINGLES):
        seconds, kind = await _one(client)
        missed += kind is not StartKind.WARM
        warm.append(seconds * 1000)
        await asyncio.sleep(_PAUSE_S)
        without.append((await _one(cold))[0] * 1000)
        theirs.append(await asyncio.to_thread(bare.once, 100_000 + number) * 1000)
    p50 = statistics.median
    one, other, cold_p50 = "one runsc run", p50(theirs), p50(without)
    return [
        Row("p50 of one RunEvaluation, warm", p50(warm), "ms", other, one, "<= 30 ms", met=p50(warm) <= 30),
        Row("p99 of one RunEvaluation, warm", _p99(warm), "ms", _p99(theirs), one, "<= 100 ms", met=_p99(warm) <= 100),
        Row("of these, not warm", missed, f"of {_SINGLES}"),
        Row("p50 of one RunEvaluation, cold", cold_p50, "ms", other, one, "<= 1.3 x", met=cold_p50 / other <= 1.3),
        Row("p99 of one RunEvaluation, cold", _p99(without), "ms", _p99(theirs), one),
    ]


async def _one(client: AsyncClient) -> tuple[float, StartKind]:
    """Seconds of one RunEvaluation, and how its sandbox came about."""
    began = time.monotonic()
    done = await client.run(trivial())
    seconds = time.monotonic() - began
    if done.state is not State.SUCCEEDED or done.provenance is None:
        raise BenchError(f"an evaluation did not succeed: {done}")
    return seconds, done.provenance.start_kind


def _p99(values: list[float]) -> float:
    """Of so few values it is nearly the largest."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def _nothing() -> EvaluationSpec:
    return EvaluationSpec(Program("bash", (File("main.sh", b"true\n"),)), engine="subprocess")


async def _control_plane(stack: PrivateStack, client: AsyncClient) -> list[Row]:
    concurrency = _WATCHERS
    await _run_all(client, [_nothing()] * 50, concurrency)  # caches warm, modules loaded
    before = {process: _cpu_ms(stack.pid(process)) for process in PROCESSES}
    seconds = await _run_all(client, [_nothing()] * _CONTROL, concurrency)
    rows = [Row("control plane: evaluations", _CONTROL / seconds, "per s")]
    for process in PROCESSES:
        used = _cpu_ms(stack.pid(process)) - before[process]
        rows.append(Row(f"control plane: CPU of {process}", used / _CONTROL, "ms per evaluation"))
    return rows


async def _memory(stack: PrivateStack, client: AsyncClient, idle: dict[str, float]) -> list[Row]:
    seen = []
    for _ in range(2):
        await _watched(client, _MEMORY_STEP)
        await asyncio.sleep(1)  # what was under way settles: buffers that are given back late are not growth
        seen.append(_resident(stack))
    rows = []
    for process in PROCESSES:
        first, second = (one[process] for one in seen)
        rows.append(Row(f"memory of {process}, idle", idle[process], "MiB"))
        name, base = f"memory of {process}, after {2 * _MEMORY_STEP}", f"after {_MEMORY_STEP}"
        rows.append(Row(name, second, "MiB", first, base, "<= 1.05 x", met=second / first <= 1.05))
    return rows


async def _watched(client: AsyncClient, count: int) -> None:
    """Runs `count` evaluations, each watched by one of the watchers from its beginning to its end."""
    left: Iterator[int] = iter(range(count))

    async def watcher() -> None:
        for _ in left:
            evaluation = await client.submit(_nothing())
            async with aclosing(client.watch(evaluation.name)) as events:
                async for _event in events:
                    pass

    watchers = [asyncio.create_task(watcher()) for _ in range(_WATCHERS)]
    try:
        await asyncio.gather(*watchers)
    finally:
        for one in watchers:
            one.cancel()


def _cpu_ms(pid: int) -> float:
    """CPU time of a process itself, without its children, in milliseconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_MS


def _resident(stack: PrivateStack) -> dict[str, float]:
    """Resident memory of each process, in MiB."""
    pids = {process: stack.pid(process) for process in PROCESSES}
    return {
        process: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / (1 << 20)
        for process, pid in pids.items()
    }


async def _run(common: Layout, say: Say, *, as_json: bool) -> int:
    try:
        with cancelled_by_signals():
            rows = await bench(common, say)
    except asyncio.CancelledError:
        say("interrupted; the stack is down and nothing of it is left")
        return 130
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1) + "\n")
    else:
        print_rows(rows)
    return 0


def main() -> int:
    """Runs the benchmarks; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    as_json: bool = parser.parse_args().json

    def say(text: str) -> None:
        sys.stderr.write(f"bench: {text}\n")

    try:
        return asyncio.run(_run(Layout.of(os.environ), say, as_json=as_json))
    except (*EXPECTED_ERRORS, BenchError, CallError, OSError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
