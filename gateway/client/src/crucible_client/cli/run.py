"""`crucible run`: one program, as if it ran here."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import click

from crucible_client import results
from crucible_client.async_client import AsyncClient
from crucible_client.cli import exits
from crucible_client.cli.failures import INTERRUPTED, USAGE, Failure, failures
from crucible_client.cli.output import print_json, printable
from crucible_client.cli.passthrough import STDERR, STDOUT, Passthrough, follow
from crucible_client.cli.spec_options import spec_of, spec_options
from crucible_client.errors import CallError
from crucible_client.specs import EvaluationSpec

T = TypeVar("T")

CONFIRM_SECONDS = 10.0
_PATIENCE = timedelta(seconds=60)
_DRAIN_SECONDS = 0.5
_BROKEN_PIPE = 141


@click.command()
@spec_options
@click.option("--json", "as_json", is_flag=True, help="Prints the record instead of the program's output.")
@click.option("--tried", is_flag=True, help="Tells on stderr what the program tries, as it tries it.")
def run(*, as_json: bool, tried: bool, **options: Any) -> int:
    """Runs one program; its output passes through, and its exit code is this command's.

    Exit codes: the program's own when it exited; 128+n for signal n; 124 for its wall or CPU time; 137 for memory or
    output; 130 when it was cancelled (Ctrl-C cancels it); 125 when Crucible failed; 2 when the call was wrong. They may
    coincide: --json tells them apart.
    """
    with failures(call=exits.INFRASTRUCTURE, invalid=USAGE):
        return asyncio.run(_run(spec_of(**options), as_json=as_json, tried=tried))


async def _run(spec: EvaluationSpec, *, as_json: bool, tried: bool) -> int:
    interrupts = _Interrupts()
    async with AsyncClient.from_settings(retry_for=_PATIENCE) as client:
        # A server that is not there is told at once; one that leaves after the evaluation exists is waited for.
        evaluation = await interrupts.finish_first(client.submit(spec, retry_for=timedelta(0)))
        return await _Session(client, evaluation.name, interrupts, as_json=as_json, tried=tried).run()


class _Interrupts:
    """Ctrl-C: the first is a wish, the second ends this process at once."""

    def __init__(self) -> None:
        self._wished = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._left: asyncio.Future[None] = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._take)

    def _take(self) -> None:
        if not self._wished.is_set():
            self._wished.set()
        elif not self._left.done():
            self._left.set_result(None)

    async def wished(self) -> None:
        """Returns after the first one."""
        await self._wished.wait()

    async def finish_first(self, work: Coroutine[Any, Any, T]) -> T:
        """Lets `work` end, also after a first Ctrl-C; a second one gives it up.

        Raises:
            Failure: it was given up.
        """
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._left}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise Failure("left; what was sent may still run", INTERRUPTED)
        return await task


class _Session:
    """One evaluation from its creation to this command's exit code."""

    def __init__(self, client: AsyncClient, name: str, interrupts: _Interrupts, *, as_json: bool, tried: bool) -> None:
        self._client = client
        self._name = name
        self._interrupts = interrupts
        both = {} if as_json else {results.Stream.STDOUT: STDOUT, results.Stream.STDERR: STDERR}
        self._sink = Passthrough(both, _tell, _tell if tried else None)
        self._as_json = as_json

    async def run(self) -> int:
        """Passes the output on until the end, or until a Ctrl-C."""
        following = asyncio.ensure_future(follow(self._client, self._name, self._sink))
        wished = asyncio.ensure_future(self._interrupts.wished())
        either: set[asyncio.Future[Any]] = {following, wished}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        try:
            if not following.done():
                return await self._interrupts.finish_first(self._cancel(following))
            await following
        except CallError:
            _tell(f"lost sight of {self._name}, which goes on; see `crucible get {self._name}`")
            raise
        except BrokenPipeError:
            return await self._interrupts.finish_first(self._give_up("the reader of the output left", _BROKEN_PIPE))
        except OSError as error:
            return await self._interrupts.finish_first(
                self._give_up(f"the output cannot be written: {error.strerror}", exits.INFRASTRUCTURE)
            )
        finally:
            wished.cancel()
            following.cancel()
        return self._report(await self._client.get(self._name))

    async def _cancel(self, following: "asyncio.Future[None]") -> int:
        """Ends it on Ctrl-C, and stays until that is confirmed, or for `CONFIRM_SECONDS`."""
        evaluation = await self._ended("interrupted by Ctrl-C")
        if evaluation is None:
            return INTERRUPTED
        with suppress(OSError, CallError, TimeoutError):
            await asyncio.wait_for(following, _DRAIN_SECONDS)
        self._report(evaluation)
        return INTERRUPTED

    async def _give_up(self, why: str, code: int) -> int:
        await self._ended(why)
        return code

    async def _ended(self, reason: str) -> results.Evaluation | None:
        try:
            await self._client.cancel(self._name, reason=reason)
            within = timedelta(seconds=CONFIRM_SECONDS)
            return await self._client.wait(self._name, within=within, after_position=self._sink.position)
        except CallError as error:
            _tell(f"{self._name} is not confirmed to be gone ({error.message}); see `crucible get {self._name}`")
            return None

    def _report(self, evaluation: results.Evaluation) -> int:
        if self._as_json:
            print_json(evaluation)
            return exits.exit_code(evaluation.termination)
        for remark in exits.remarks(evaluation):
            _tell(remark)
        if not isinstance(evaluation.termination, results.Exited):
            _tell(exits.describe(evaluation.termination))
        return exits.exit_code(evaluation.termination)


def _tell(line: str) -> None:
    with suppress(OSError):  # the reader of stderr may be gone; the exit code still tells
        print(f"crucible: {printable(line)}", file=sys.stderr, flush=True)  # noqa: T201
