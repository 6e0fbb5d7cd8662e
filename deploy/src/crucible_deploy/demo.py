"""`make demo`: a private stack, three passes over HumanEval, ten hostile programs, a table of each, and all gone again.

Exit code 0 when every row is what it must be, 1 when one is not, 130 after Ctrl-C. Started by `make demo`, as root.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from crucible_client import AsyncClient, CallError, Limits, Stream
from crucible_client.suites import humaneval
from crucible_client.suites.grading import Grade, ending, graded
from crucible_client.suites.summary import Summary, summarize
from crucible_deploy.demo_report import HostileRow, PassRow, Report
from crucible_deploy.hostile import PROGRAMS, Hostile
from crucible_deploy.hostile_judges import Judges
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.interrupt import cancelled_by_signals
from crucible_deploy.layout import Layout
from crucible_deploy.prepare import EXPECTED_ERRORS
from crucible_deploy.private_stack import PrivateStack, private_stack
from crucible_deploy.stack import Options

_LIMITS = Limits(wall_time=timedelta(seconds=30), memory_bytes=512 << 20)
_WAITING_PER_SLOT = 2  # so that a slot that becomes free finds work at once
_MAX_OUTPUT = 4 << 20


@dataclass(frozen=True)
class Pass:
    """One pass over HumanEval.

    Attributes:
        name: for the table.
        samples: makes the candidate solutions.
        must_pass: how many of them must pass.
        must_end: how all of them must end.
        must_say: how the last line of each one's standard error must begin; empty: anything will do.
    """

    name: str
    samples: Callable[[], Sequence[humaneval.Sample]]
    must_pass: int
    must_end: str
    must_say: bytes = b""


PASSES = (
    Pass("reference solutions", humaneval.reference_samples, 164, "EXITED 0"),
    Pass("wrong solutions", humaneval.wrong_samples, 0, "EXITED 1", b"AssertionError"),
    Pass("early exits with code 0", humaneval.early_exit_samples, 0, "EXITED 0"),
)


async def demo(common: Layout, report: Report) -> bool:
    """Runs everything in a private stack; whether every row was what it must be.

    Raises:
        PrepareError and its like: the stack cannot be started.
        CallError: the stack does not answer.
    """
    async with private_stack(common, Options(), report.say) as stack, stack.client() as client:
        capabilities = await client.capabilities()
        report.begin(capabilities, stack.layout.address("gateway"))
        passes = [await _pass(client, one, report) for one in PASSES]
        hostile = await _hostile(stack, client, report)
    report.finish(passes, hostile)
    return all(row.ok for row in passes) and all(row.ok for row in hostile)


async def _pass(client: AsyncClient, one: Pass, report: Report) -> PassRow:
    samples = one.samples()
    concurrency = _WAITING_PER_SLOT * (os.cpu_count() or 1)
    grades: list[Grade] = []
    began = time.monotonic()
    with report.progress(one.name, len(samples)) as advance:
        async with aclosing(graded(client, samples, concurrency=concurrency, limits=_LIMITS)) as coming:
            async for grade in coming:
                grades.append(grade)
                advance()
    decided = [grade for grade in grades if grade.passed is not None]
    seconds = time.monotonic() - began
    summary = summarize(decided, samples=len(samples), ks=(1,), new=decided, seconds=seconds)
    faults = _pass_faults(one, summary, grades)
    if one.must_say:
        others = [g.task_id for g in decided if not (await _last_line(client, g)).startswith(one.must_say)]
        faults += [f"{len(others)} did not end by {one.must_say.decode()}, {others[0]} first"] if others else []
    return PassRow(one.name, summary, tuple(faults))


async def _last_line(client: AsyncClient, grade: Grade) -> bytes:
    stderr = await client.output(grade.evaluation, Stream.STDERR, max_bytes=_MAX_OUTPUT)
    return stderr.strip().rpartition(b"\n")[2]


def _pass_faults(one: Pass, summary: Summary, grades: Sequence[Grade]) -> list[str]:
    """What is not as it must be, in words."""
    faults = []
    if summary.undecided:
        why = next((grade.detail for grade in grades if grade.passed is None), "")
        faults.append(f"{summary.undecided} evaluations without a result: {why}")
    if summary.passed != one.must_pass:
        faults.append(f"{summary.passed} passed, {one.must_pass} must")
    if set(summary.ended) - {one.must_end}:
        faults.append(f"ended as {', '.join(summary.ended)}; all must be {one.must_end}")
    return faults


async def _hostile(stack: PrivateStack, client: AsyncClient, report: Report) -> list[HostileRow]:
    executor = ProcessIdentity.of(stack.pid("executor"))
    if executor is None:
        raise RuntimeError("the executor does not run")
    rows = []
    with Judges(stack.layout, executor) as judges, report.progress("hostile programs", len(PROGRAMS)) as advance:
        for program in PROGRAMS:
            rows.append(await _hostile_row(client, program, judges))
            advance()
    return rows


async def _hostile_row(client: AsyncClient, program: Hostile, judges: Judges) -> HostileRow:
    evaluation = await client.run(program.spec(judges.arguments(program)), within=timedelta(minutes=2))
    stdout = await client.output(evaluation.name, max_bytes=_MAX_OUTPUT)
    kind, words = ending(evaluation.termination)
    faults = await asyncio.to_thread(judges.faults, program, evaluation, stdout)
    if kind not in program.ends:
        faults.insert(0, f"must end as {' or '.join(program.ends)}")
    proof = evaluation.termination.evidence if evaluation.termination is not None else None
    source = proof.source.value if proof is not None else "none"
    seen = judges.shown(program, evaluation) if not faults else ""
    return HostileRow(program.name, program.tries, kind, f"{source}: {words}", seen, tuple(faults))


async def _run(common: Layout, report: Report) -> int:
    try:
        with cancelled_by_signals():
            return 0 if await demo(common, report) else 1
    except asyncio.CancelledError:
        report.say("interrupted; the stack is down and nothing of it is left")
        return 130


def main() -> int:
    """Runs the demo; returns the exit code."""
    report = Report()
    try:
        return asyncio.run(_run(Layout.of(os.environ), report))
    except (*EXPECTED_ERRORS, CallError, OSError) as error:
        report.error(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
