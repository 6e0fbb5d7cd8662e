"""The executor's side of tracing: a socket per sandbox, accepted once, and handed on unread to the reader's process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from crucible_executor.behaviour import Behaviour
from crucible_executor.cgroups import Bounds, Cgroup, CgroupsUnavailableError, CgroupTree, ProcessesLeftError
from crucible_executor.host_process import HostProcess
from crucible_executor.tracing import points, tally, wire
from crucible_executor.tracing.reader import NUMBER_BYTES
from crucible_rpc import logs

READER = "reader"
"""The name of the reader's cgroup."""

_READER_BOUNDS = Bounds(memory_bytes=128 << 20, tasks=4)
_READER_CPUS = 0.5
_PATIENCE_S = 3.0
_QUICK_DEATH_S = 10.0
_QUICK_DEATHS = 3
_log = logging.getLogger(__name__)


class TracerUnavailableError(Exception):
    """Nothing can be traced; the message says why."""


@dataclass(frozen=True)
class TracerPaths:
    """The launcher of `executor/init`, and the user (by name) that the reader runs as."""

    launcher: Path
    user: str


class Trace:
    """The trace of one sandbox, from before its start until its processes are gone.

    Attributes:
        flags: what runsc is given for it.
    """

    def __init__(
        self,
        flags: tuple[str, ...] = (),
        *,
        close: Callable[[], None] = lambda: None,
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        self.flags = flags
        self._began = datetime.now(UTC)
        self._close = close
        self._on_silence = on_silence
        self._ended: asyncio.Future[bytes | Behaviour] = asyncio.get_running_loop().create_future()
        self._connected = False

    @classmethod
    def none(cls, reason: str) -> Trace:
        """The trace of a sandbox that has none."""
        trace = cls()
        trace.end(Behaviour.not_observed(reason))
        return trace

    def connected(self) -> None:
        """The sandbox's kernel has its connection."""
        self._connected = True

    @property
    def is_connected(self) -> bool:
        """Whether the sandbox's kernel has, or had, its connection."""
        return self._connected

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be known."""
        return self._ended.done()

    def begin(self) -> None:
        """The run begins: a sandbox that was booted ahead may have waited, and no action is told as of before."""
        self._began = datetime.now(UTC)

    def end(self, said: bytes | Behaviour) -> None:
        """The reader's report, or why there will be none. Only the first counts."""
        if not self._ended.done():
            self._ended.set_result(said)

    async def behaviour(self) -> Behaviour:
        """What the program tried. To be called when the sandbox's processes are gone; returns within seconds."""
        if not self._connected:
            self.end(Behaviour.not_observed("the sandbox's kernel opened no trace"))
        await asyncio.wait([self._ended], timeout=_PATIENCE_S)
        if not self._ended.done():
            self.end(Behaviour.not_observed(f"the reader of the trace said nothing within {_PATIENCE_S:g} s"))
            self._on_silence()
        said = self._ended.result()
        return said if isinstance(said, Behaviour) else tally.behaviour(said, self._began, datetime.now(UTC))

    def close(self) -> None:
        """Forgets it. Idempotent."""
        self._close()


class Untraced:
    """In a tracer's place where nothing is traced.

    Args:
        reason: what each run says about it.
    """

    watches = False
    """See `Tracer.watches`."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def open(self, folder: Path) -> Trace:  # noqa: ARG002
        """A trace that says the reason."""
        return Trace.none(self._reason)

    def lost(self, trace: Trace) -> bool:  # noqa: ARG002
        """Never: another sandbox would not be observed either."""
        return False

    async def sweep(self) -> None:
        """There is nothing to end."""

    async def close(self) -> None:
        """There is nothing to end."""


UNTRACED = Untraced("this executor has no tracer")


class Tracer:
    """Keeps the reader's process and hands it the sandboxes' connections.

    The reader is started when it is needed first, and again when it has died; a reader that keeps dying is let be for
    a while.

    Args:
        paths: see there.
        cgroups: the cgroup tree of the reader alone.
    """

    def __init__(self, paths: TracerPaths, cgroups: CgroupTree) -> None:
        self._paths = paths
        self._cgroups = cgroups
        self._cgroup: Cgroup | None = None
        self._process: HostProcess | None = None
        self._control: socket.socket | None = None
        self._traces: dict[int, Trace] = {}
        self._next = 1
        self._started_at = 0.0
        self._quick_deaths = 0

    @property
    def watches(self) -> bool:
        """Whether sandboxes are traced here, unless something fails."""
        return points.supported()

    @property
    def reader_pid(self) -> int | None:
        """The reader's process, while there is one."""
        return self._process.pid if self._process is not None and not self._process.exited.done() else None

    def open(self, folder: Path) -> Trace:
        """Makes a socket and a configuration for runsc in a sandbox's own folder, which only root may enter.

        Never raises for a fault of tracing: the run then says that it was not observed, and why.
        """
        try:
            self._ensure_reader()
            return self._listen(folder)
        except (OSError, CgroupsUnavailableError, TracerUnavailableError) as error:
            _log.warning("a sandbox is not traced", extra=logs.fields(reason=str(error)))
            return Trace.none(f"tracing is not available: {error}")

    def lost(self, trace: Trace) -> bool:
        """Whether a sandbox that has not run yet would not be observed, while one booted now can be."""
        return trace.has_ended and (trace.is_connected or self.reader_pid is not None)

    async def sweep(self) -> None:
        """Ends what an earlier executor's reader left. To be called before the first `open`."""
        for left in self._cgroups.existing():
            await left.kill()
            await left.remove()

    async def close(self) -> None:
        """Ends the reader and removes its cgroup. Idempotent."""
        self._hang_up("the executor stops")
        if self._process is not None:
            await asyncio.wait([self._process.exited], timeout=_PATIENCE_S)
        if self._cgroup is not None:
            with contextlib.suppress(ProcessesLeftError, OSError):  # the next start sweeps it
                await self._cgroup.kill()
                await self._cgroup.remove()
            self._cgroup = None
        self._cgroups.discard()

    # One sandbox.

    def _listen(self, folder: Path) -> Trace:
        endpoint, configuration = folder / "trace.sock", folder / "trace.json"
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        number, self._next = self._next, self._next + 1

        def stop_listening() -> None:
            if listener.fileno() >= 0:
                loop.remove_reader(listener)
                listener.close()
                endpoint.unlink(missing_ok=True)

        def close() -> None:
            stop_listening()
            self._traces.pop(number, None)

        try:
            listener.bind(str(endpoint))
            listener.listen(1)
            configuration.write_bytes(points.session(endpoint))
        except OSError:
            listener.close()
            raise
        flags = (f"--pod-init-config={configuration}",)
        trace = self._traces[number] = Trace(flags, close=close, on_silence=self._end_reader)
        loop.add_reader(listener, self._accept, listener, stop_listening, number, trace)
        return trace

    def _accept(self, listener: socket.socket, stop_listening: Callable[[], None], number: int, trace: Trace) -> None:
        """Takes the one connection; from then on nobody can make another. Nothing is read from it here."""
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            stop_listening()
            trace.end(Behaviour.not_observed(f"the trace could not be opened: {error.strerror}"))
            return
        stop_listening()
        with connection:
            try:
                connection.send(wire.HANDSHAKE)
                if self._control is None:
                    raise BrokenPipeError
                socket.send_fds(self._control, [number.to_bytes(NUMBER_BYTES, "little")], [connection.fileno()])
            except OSError:
                trace.end(Behaviour.not_observed("the reader of the trace takes no more"))
            trace.connected()

    # The reader.

    def _ensure_reader(self) -> None:
        if self.reader_pid is not None and self._control is not None:
            return
        if not points.supported():
            raise TracerUnavailableError("the numbers of the system calls are known for x86-64 only")
        if self._quick_deaths >= _QUICK_DEATHS and time.monotonic() - self._started_at < _QUICK_DEATH_S:
            raise TracerUnavailableError("its reader keeps dying; it is started again in some seconds")
        try:
            user = pwd.getpwnam(self._paths.user)
        except KeyError:
            raise TracerUnavailableError(f"there is no user {self._paths.user}; `crucible up` makes it") from None
        if user.pw_uid == 0 or user.pw_gid == 0:
            raise TracerUnavailableError(f"the user {self._paths.user} has root's user or group id")
        self._start(user.pw_uid, user.pw_gid)

    def _start(self, uid: int, gid: int) -> None:
        if self._cgroup is None:
            self._cgroups.prepare()
            self._cgroup = self._cgroups.create(READER, _READER_BOUNDS)
            self._cgroup.limit_cpus(_READER_CPUS)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._started_at = time.monotonic()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._process = HostProcess(
                [
                    str(self._paths.launcher), str(os.getpid()), *map(str, self._cgroup.procs_files), "--",
                    sys.executable, "-I", "-m", "crucible_executor.tracing.reader",
                    str(theirs.fileno()), str(uid), str(gid),
                ],
                stdin=null, stdout=null, stderr=_standard_error(null), env={}, pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(null)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._heard, ours)
        self._process.exited.add_done_callback(lambda _: self._died(ours))

    def _end_reader(self) -> None:
        """Ends a reader that hangs: what can wait for it is too little to keep it busy for so long."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def _heard(self, control: socket.socket) -> None:
        try:
            data = control.recv(NUMBER_BYTES + tally.MAX_REPORT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._died(control)
            return
        trace = self._traces.get(int.from_bytes(data[:NUMBER_BYTES], "little"))
        if trace is not None:
            trace.end(data[NUMBER_BYTES:])

    def _died(self, control: socket.socket) -> None:
        if control is not self._control:
            return
        lived = time.monotonic() - self._started_at
        self._quick_deaths = self._quick_deaths + 1 if lived < _QUICK_DEATH_S else 0
        _log.warning("the reader of traces died", extra=logs.fields(seconds=round(lived, 1), traces=len(self._traces)))
        self._hang_up("the reader of the trace died during the run")

    def _hang_up(self, reason: str) -> None:
        control, self._control = self._control, None
        if control is None:
            return
        asyncio.get_running_loop().remove_reader(control)
        control.close()
        for trace in self._traces.values():
            trace.end(Behaviour.not_observed(reason))


def _standard_error(otherwise: int) -> int:
    """Where the reader says why it died: our own log, when there is one."""
    try:
        os.fstat(2)
    except OSError:
        return otherwise
    return 2


Tracing = Tracer | Untraced
"""What an engine is given."""
