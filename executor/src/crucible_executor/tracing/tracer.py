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
from pathlib import Path

from crucible_executor.behaviour import Behaviour
from crucible_executor.cgroups import Bounds, Cgroup, CgroupsUnavailableError, CgroupTree, ProcessesLeftError
from crucible_executor.host_process import HostProcess
from crucible_executor.tracing import live, points, tally, wire
from crucible_executor.tracing.reader import ENDS, NUMBER_BYTES, TELLS
from crucible_executor.tracing.trace import PATIENCE_S, Trace
from crucible_rpc import logs

READER = "reader"
"""The name of the reader's cgroup."""

_READER_BOUNDS = Bounds(memory_bytes=128 << 20, tasks=4)
_READER_CPUS = 0.5

# While a run is told of, the reader is asked so often whether it reads; its silence would look like a quiet program's.
_QUESTION_S = 1.0
_HUNG_S = 5.0

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
        self._may_say = 0
        self._question: asyncio.TimerHandle | None = None
        self._asked_at: float | None = None

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
        if self._question is not None:
            self._question.cancel()
        self._hang_up("the executor stops")
        if self._process is not None:
            await asyncio.wait([self._process.exited], timeout=PATIENCE_S)
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
        trace = self._traces[number] = Trace(flags, close=close, on_begin=self._ask_soon, on_silence=self._end_reader)
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
                self._may_say += live.MAX_FRAMES + 1
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
        self._may_say, self._asked_at = 0, None
        asyncio.get_running_loop().add_reader(ours, self._heard, ours)
        self._process.exited.add_done_callback(lambda _: self._died(ours))

    def _end_reader(self) -> None:
        """Ends a reader that hangs: what can wait for it is too little to keep it busy for so long."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def _ask_soon(self) -> None:
        if self._question is None:
            self._question = asyncio.get_running_loop().call_later(_QUESTION_S, self._ask)

    def _ask(self) -> None:
        """Finds out, while somebody is told of a run, whether the reader reads: its silence says that all is quiet."""
        self._question = None
        if self._control is None or not any(trace.is_told for trace in self._traces.values()):
            self._asked_at = None
            return
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            self._may_say += 1
            with contextlib.suppress(OSError):  # no room: it does not read, which is found out
                self._control.send(bytes(NUMBER_BYTES))
        elif now - self._asked_at > _HUNG_S:
            _log.error("the reader of traces hangs and is ended")
            self._end_reader()
            return
        self._ask_soon()

    def _heard(self, control: socket.socket) -> None:
        try:
            data = control.recv(NUMBER_BYTES + len(ENDS) + tally.MAX_REPORT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._died(control)
            return
        self._may_say -= 1
        if self._may_say < 0:
            _log.error("the reader of traces says more than it may and is ended")
            self._end_reader()
            self._died(control)
            return
        self._said(int.from_bytes(data[:NUMBER_BYTES], "little"), data[NUMBER_BYTES:])

    def _said(self, number: int, what: bytes) -> None:
        if not number:
            self._asked_at = None
            return
        trace = self._traces.get(number)
        if trace is None:
            return
        if what[: len(TELLS)] == TELLS:
            trace.tells(what[len(TELLS) :])
        else:
            trace.end(what[len(ENDS) :])

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
