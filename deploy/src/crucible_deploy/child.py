"""One process under supervision: started as its user, read line by line, started again when it dies, stopped."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from crucible_deploy import probe
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.logfile import LineSplitter, LogFile
from crucible_deploy.spec import ProcessSpec

SUPERVISOR_PREFIX = "supervisor"
_PROBE_SECONDS = 0.05
_READ_BYTES = 64 * 1024
_SHOWN_LINES = 15
_SHOWN_CHARACTERS = 600


class ChildError(Exception):
    """A process did not come up; the text says which, why, and what it said last."""


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a process is started again.

    Attributes:
        first: seconds before the first restart.
        most: seconds at most; doubled from `first` with each restart.
        stable: seconds after which a process counts as well, and the wait begins anew.
    """

    first: float = 0.1
    most: float = 5.0
    stable: float = 10.0


class Child:
    """Keeps one process running between `start` and `stop`.

    Args:
        spec: the process.
        log: where its lines go.
        say: also told every line, as (name, line).
        changed: called after each start, when its identity is another; it may raise OSError.
        backoff: how long to wait before a restart.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        log: LogFile,
        *,
        say: Callable[[str, str], None],
        changed: Callable[[], None],
        backoff: Backoff | None = None,
    ) -> None:
        self.spec = spec
        self.identity: ProcessIdentity | None = None
        self.restarts = 0
        self._log = log
        self._say = say
        self._changed = changed
        self._backoff = backoff or Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._last_words: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._stopping = asyncio.Event()
        self._spawning = asyncio.Lock()

    async def start(self, timeout_seconds: float) -> None:
        """Starts the process and waits until it is ready; from then on it is kept running.

        Raises:
            ChildError: it ended, or was not ready in time. `stop` must still be called.
        """
        await self._spawn()
        ready = asyncio.ensure_future(self._wait_ready())
        ended = asyncio.ensure_future(self._wait_end())
        try:
            await asyncio.wait((ready, ended), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                if ended.done() and self._readers:
                    await asyncio.wait(self._readers, timeout=1)  # its last words may still be in the pipe
                why = f"ended with {_ending(ended.result())}" if ended.done() else f"not ready in {timeout_seconds:g} s"
                last = "\n".join(f"  {line[:_SHOWN_CHARACTERS]}" for line in self._last_words)
                raise ChildError(f"{self.spec.name} did not start: {why}; its last words ({self._log.path}):\n{last}")
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Ends the process for good: SIGTERM, and SIGKILL to its session when that takes too long. Idempotent."""
        self._stopping.set()
        async with self._spawning:  # from here on nothing new is started
            await self._end()
        if self._keeper is not None:
            await self._keeper
        if self._readers:
            # What the process left behind may hold the pipe open: its last words are waited for, not its children.
            _, late = await asyncio.wait(self._readers, timeout=1)
            for reader in late:
                reader.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self.identity = None

    async def _end(self) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), self.spec.stop_seconds)
        except TimeoutError:
            self._note(f"did not end within {self.spec.stop_seconds:g} s of SIGTERM; killed")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def _spawn(self) -> None:
        setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
        if setpriv is None:
            raise ChildError("setpriv is not installed; install the package util-linux")
        # Our own pipe, not asyncio's: some versions let `wait` hang until the pipe is closed, which grandchildren hold.
        reading, writing = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.wrapped_command(setpriv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=self.spec.full_environment(),
                cwd="/",
                umask=0o077,
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        reader = asyncio.create_task(self._read(reading))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        self.identity = ProcessIdentity.of(self._process.pid)
        self._changed()

    async def _keep(self) -> None:
        delay = self._backoff.first
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await self._wait_end()
            if self._stopping.is_set():
                return
            if loop.time() - started > self._backoff.stable:
                delay = self._backoff.first
            self._note(f"ended with {_ending(code)}; started again in {delay:g} s")
            if await self._stopped_within(delay):
                return
            delay = min(delay * 2, self._backoff.most)
            async with self._spawning:
                if self._stopping.is_set():
                    return
                self.restarts += 1
                try:
                    await self._spawn()
                except (OSError, ChildError) as error:  # as of a full disk, or no process to be had: it may pass
                    self._note(f"could not be started as it should: {error}")

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _wait_end(self) -> int:
        if self._process is None:
            raise RuntimeError("waiting for a process that was never started")
        return await self._process.wait()

    async def _wait_ready(self) -> None:
        # Another process has no event to wait for: asked until it says so, within the caller's limit.
        while not await probe.is_ready(self.spec.admin):  # noqa: ASYNC110
            await asyncio.sleep(_PROBE_SECONDS)

    async def _read(self, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        splitter = LineSplitter()
        try:
            while data := await reader.read(_READ_BYTES):
                self._lines(splitter.feed(data))
            self._lines(splitter.end())
        finally:
            transport.close()

    def _lines(self, lines: list[bytes]) -> None:
        for line in lines:
            self._log.write(line)
            text = line.decode(errors="replace")
            self._last_words.append(text)
            self._say(self.spec.name, text)

    def _note(self, text: str) -> None:
        self._log.write(f"{SUPERVISOR_PREFIX}: {text}".encode())
        self._say(SUPERVISOR_PREFIX, f"{self.spec.name} {text}")


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
