"""`make soak`: exit code 0 when nothing grew, 1 when something did or went wrong, 130 after Ctrl-C."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import islice

from crucible_client import AsyncClient, CallError
from crucible_client.results import Evaluation, Exited, LimitExceeded, OutputChunk, Signalled
from crucible_deploy.bench import machine
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.interrupt import cancelled_by_signals
from crucible_deploy.layout import Layout
from crucible_deploy.prepare import EXPECTED_ERRORS
from crucible_deploy.private_stack import private_stack
from crucible_deploy.soak.look import Look, look
from crucible_deploy.soak.programs import Kind, mixed
from crucible_deploy.soak.report import Soaked, print_soaked
from crucible_deploy.soak.verdict import verdicts
from crucible_deploy.stack import Options

_WIDE = 4
_POOL = 4
_SHOWN = ("executor: RSS MiB", "executor: descriptors", "sandboxes: cgroups", "executor: files of its state")


async def soak(common: Layout, say: Callable[[str], None], count: int, every: int) -> Soaked:
    """Runs `count` programs, and looks after each `every`.

    Raises:
        BenchError: something of an ended run does not go away.
        CallError: the stack does not answer.
        PrepareError and its like: the stack cannot be started.
    """
    soaked = Soaked(machine.look(common.paths), 0.0, 0)
    kinds = mixed(count)
    async with private_stack(common, Options(slots=_WIDE, pool=_POOL), say) as stack, stack.client() as client:
        while soaked.runs < count:
            few = min(every, count - soaked.runs)
            began = time.monotonic()
            await _run_some(client, kinds, few, soaked)
            soaked = replace(soaked, runs=soaked.kinds.total(), seconds=soaked.seconds + time.monotonic() - began)
            seen = await look(stack, soaked.runs, _POOL)
            soaked = replace(soaked, looks=(*soaked.looks, seen))
            soaked.wrong.update(replaced(soaked.looks))
            rate = soaked.runs / soaked.seconds
            shown = ", ".join(f"{name} {seen.figures[name]:.1f}" for name in _SHOWN)
            say(f"{soaked.runs} of {count} runs, {rate:.1f} per s; {shown}; {soaked.wrong.total()} wrong")
    ended = replace(soaked.machine, load_at_end=os.getloadavg()[0])
    return replace(soaked, machine=ended, verdicts=tuple(verdicts(soaked.looks)))


def replaced(looks: Sequence[Look]) -> list[str]:
    """What the last look found replaced since the one before: a process that starts anew hides what it had grown to."""
    if len(looks) < 2:
        return []
    before, now = looks[-2].processes, looks[-1].processes
    return [f"{name}: another process than before" for name, pid in before.items() if now.get(name) != pid]


async def _run_some(client: AsyncClient, kinds: Iterator[Kind], count: int, soaked: Soaked) -> None:
    left = islice(kinds, count)

    async def lane() -> None:
        for kind in left:
            ended = _ending(await (_cancelled(client, kind) if kind.cancelled else client.run(kind.spec)))
            soaked.kinds[kind.name] += 1
            if ended != kind.ends:
                soaked.wrong[f"{kind.name}: {ended} instead of {kind.ends}"] += 1

    lanes = [asyncio.create_task(lane()) for _ in range(_WIDE)]
    try:
        await asyncio.gather(*lanes)
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)


async def _cancelled(client: AsyncClient, kind: Kind) -> Evaluation:
    submitted = await client.submit(kind.spec)
    async with aclosing(client.watch(submitted.name)) as events:
        async for event in events:
            if isinstance(event, OutputChunk):
                break
    await client.cancel(submitted.name, reason="soak")
    return await client.wait(submitted.name)


def _ending(evaluation: Evaluation) -> str:
    """The kind of its termination, and its exit code, signal or limit."""
    ended = evaluation.termination
    kind = type(ended).__name__
    match ended:
        case Exited(code=code):
            return f"{kind} {code}"
        case Signalled(signal=number):
            return f"{kind} {number}"
        case LimitExceeded(limit=limit):
            return f"{kind} {limit.value}"
        case _:
            return kind


async def _run(common: Layout, say: Callable[[str], None], options: argparse.Namespace) -> int:
    try:
        with cancelled_by_signals():
            soaked = await soak(common, say, options.count, options.every)
    except asyncio.CancelledError:
        say("interrupted; the stack is down and nothing of it is left")
        return 130
    if options.json:
        sys.stdout.write(soaked.as_json() + "\n")
    else:
        print_soaked(soaked)
    return 0 if soaked.ok else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the soak; returns the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description="Thousands of runs, and whether anything grows.")
    parser.add_argument("--count", type=_positive, default=10_000, help="how many programs; default 10000")
    parser.add_argument("--every", type=_positive, help="programs between two looks; default a twentieth")
    parser.add_argument("--json", action="store_true", help="all figures as JSON on stdout")
    options = parser.parse_args(arguments)
    options.every = options.every or max(1, options.count // 20)
    if options.count < 3 * options.every:
        parser.error("growth is seen in at least three looks: --count must be three times --every")

    def say(text: str) -> None:
        sys.stderr.write(f"soak: {text}\n")

    try:
        return asyncio.run(_run(Layout.of(os.environ), say, options))
    except (*EXPECTED_ERRORS, BenchError, CallError, OSError) as error:
        say(str(error))
        return 1


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
