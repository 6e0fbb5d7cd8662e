"""Commands whose time is measured: run in a thread, ended with all they started when the measurement is cancelled."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from crucible_deploy.bench.errors import BenchError

T = TypeVar("T")

_SHOWN = 500


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Attributes:
        seconds: from before its start to after its end.
        stdout: what it wrote.
        stderr: likewise.
        returncode: negative for a signal.
    """

    seconds: float
    stdout: bytes
    stderr: bytes
    returncode: int


class Command:
    """One command in a session of its own, so that its end is the end of its children too.

    Args:
        argv: program and arguments.
        environment: None: this process's.
        keep_stdin: whether its standard input is a pipe that somebody will write to; otherwise it is empty.
        grace_s: how long it is given after SIGINT to clean up when it is ended early; 0: it is killed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        keep_stdin: bool = False,
        grace_s: float = 0.0,
    ) -> None:
        self._argv = list(argv)
        self._environment = environment
        self._keep_stdin = keep_stdin
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._ended = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it.

        Raises:
            BenchError: it cannot be started, or was ended before.
        """
        with self._lock:
            if self._ended:
                raise BenchError("interrupted")
            try:
                self._process = subprocess.Popen(
                    self._argv, stdin=subprocess.PIPE if self._keep_stdin else subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self._environment, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise BenchError(f"{self._argv[0]} does not start: {error.strerror}") from error
            return self._process

    def run(self, given: bytes = b"", *, timeout_s: float = 120.0) -> Finished:
        """Starts it, gives it its standard input, and waits for its end.

        Raises:
            BenchError: it cannot be started, or did not end in time.
        """
        began = time.perf_counter()
        process = self.start()
        try:
            stdout, stderr = process.communicate(given or None, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.end()
            process.communicate()
            raise BenchError(f"{self._argv[0]} did not end within {timeout_s:g} s") from None
        return Finished(time.perf_counter() - began, stdout, stderr, process.returncode)

    def end(self) -> None:
        """Ends its session. It may not have been started yet; then it never is."""
        with self._lock:
            self._ended = True
        if self._grace_s:
            self._signal(signal.SIGINT)
            late = threading.Timer(self._grace_s, self._signal, (signal.SIGKILL,))
            late.daemon = True
            late.start()
        else:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)


async def to_the_end(work: Callable[[], T], *, stop: Callable[[], None] | None = None) -> T:
    """Runs `work` in a thread. When cancelled, calls `stop` and waits for the thread: it must not go on behind us."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that nobody is told of it: the cancellation is what counts
        raise


async def run(
    argv: Sequence[str],
    given: bytes = b"",
    *,
    timeout_s: float = 120.0,
    environment: Mapping[str, str] | None = None,
    grace_s: float = 0.0,
) -> Finished:
    """Runs a command to its end; see `Command`.

    Raises:
        BenchError: see `Command.run`.
    """
    command = Command(argv, environment=environment, keep_stdin=bool(given), grace_s=grace_s)
    return await to_the_end(lambda: command.run(given, timeout_s=timeout_s), stop=command.end)


def expect(finished: Finished, what: str, stdout: bytes) -> Finished:
    """The same, when it ended well with this output.

    Raises:
        BenchError: it did not; says what it said.
    """
    if finished.returncode != 0 or finished.stdout != stdout:
        said = finished.stderr.decode(errors="replace").strip()[-_SHOWN:] or repr(finished.stdout[:_SHOWN])
        raise BenchError(f"{what} failed with exit code {finished.returncode}: {said}")
    return finished
