"""`make bench`, `make bench-full`: measures, prints the tables, and leaves nothing behind, however it ends.

Exit code 0 when all was measured, whether targets were met or not; 1 when something could not be, or with `--strict`
when a target was missed; 130 after Ctrl-C.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from crucible_client import CallError
from crucible_deploy.bench import machine, processes
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.report import Measured, Report, Row, Section, print_report
from crucible_deploy.bench.stand import FULL, TINY, Choice, Say, Sizes, Stand, stand
from crucible_deploy.bench.subjects import SUBJECTS
from crucible_deploy.interrupt import cancelled_by_signals
from crucible_deploy.layout import Layout
from crucible_deploy.prepare import EXPECTED_ERRORS

_NOT_READY = (*EXPECTED_ERRORS, BenchError, CallError, OSError)


async def bench(
    common: Layout, say: Say, choice: Choice, names: Sequence[str], tell: Callable[[Report], None]
) -> Report:
    """Measures these subjects; one that fails is a row that says why, and the others go on.

    Args:
        common: the user's own layout.
        say: told what is being done.
        choice: how much to measure.
        names: of the subjects.
        tell: told the result before the stacks are taken down: an hour's figures do not hang on how that goes.

    Raises:
        BenchError: nothing can be measured.
        PrepareError and its like: the stack cannot be started.
    """
    report = Report(machine.look(common.paths))
    for line in report.machine.lines():
        say(line)
    started = time.monotonic()
    async with stand(common, say, choice) as ready:
        report = report.with_section(Section("set-up", Measured(), time.monotonic() - started))
        for name in names:
            began = time.monotonic()
            measured = await _measured(name, ready) if began - started < choice.sizes.budget_s else _left_out(name)
            report = report.with_section(Section(name, measured, time.monotonic() - began))
            say(f"{name} took {time.monotonic() - began:.0f} s")
        report = replace(report, machine=replace(report.machine, load_at_end=os.getloadavg()[0]))
        tell(report)
    return report


def _left_out(name: str) -> Measured:
    return Measured((Row.left_out(name, "the time was over: make bench-full takes as long as it needs"),))


async def _measured(name: str, ready: Stand) -> Measured:
    ready.say(f"measuring {name}")
    ours = [processes.of_stack(one) for one in ready.stacks]
    try:
        measured = await SUBJECTS[name](ready)
        if [processes.of_stack(one) for one in ready.stacks] != ours:
            raise BenchError("a process of the stack was started again meanwhile")  # noqa: TRY301
    except Exception as error:  # whatever it is: an hour's figures of the other subjects do not hang on it
        ready.say(f"{name} failed: {type(error).__name__}: {error}")
        return Measured((Row.failure(name, str(error) or type(error).__name__),))
    return measured


async def _run(common: Layout, say: Say, choice: Choice, options: argparse.Namespace) -> int:
    def tell(report: Report) -> None:
        if options.json:
            sys.stdout.write(report.as_json() + "\n")
            sys.stdout.flush()
        else:
            print_report(report)

    try:
        with cancelled_by_signals():
            report = await bench(common, say, choice, options.only or list(SUBJECTS), tell)
    except asyncio.CancelledError:
        say("interrupted; the stack is down and nothing of it is left")
        return 130
    return report.exit_code(strict=options.strict)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="What Crucible costs on this machine.")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--strict", action="store_true", help="exit code 1 also when a target was missed")
    parser.add_argument("--only", action="append", choices=list(SUBJECTS), help="only this subject; may be repeated")
    parser.add_argument("--go-judge", type=Path, metavar="PATH", help="the binary of a go-judge to compare with")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--full", dest="sizes", action="store_const", const=FULL, help="many more of everything")
    sizes.add_argument("--tiny", dest="sizes", action="store_const", const=TINY, help="too few to mean anything")
    parser.set_defaults(sizes=Sizes())
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit code."""
    options = _arguments(arguments)

    def say(text: str) -> None:
        sys.stderr.write(f"bench: {text}\n")

    try:
        choice = Choice(options.sizes, options.go_judge and options.go_judge.resolve())
        return asyncio.run(_run(Layout.of(os.environ), say, choice, options))
    except _NOT_READY as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
