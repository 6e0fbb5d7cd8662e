"""`python -m crucible_executor.tracing.reader FD UID GID`: reads the traces of all sandboxes, without any privilege.

Over the socket FD the executor hands it one connection per sandbox, each with a number. With that number it tells what
is new (`live`), and when the connection ends, the run's tally. A number without a connection asks whether it still
reads, and comes back. It opens nothing, starts nothing and dials nobody, and ends with the executor. It starts as root
so that it can be run from an environment that only root reads, and gives everything up before it takes its first byte.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from crucible_executor.tracing import live, wire
from crucible_executor.tracing.tally import Tally

BATCH = 64
"""Messages read of one sandbox before the others have their turn."""

REST_S, SHORT_REST_S = 0.02, 0.001
"""Between two reads of one sandbox; the short one when the first of them found at least `BATCH`. A wake for every
message would take a CPU from the very kernel that sends it, in the middle of its system calls. What comes meanwhile
waits in the socket, and a kernel that finds that full waits longer than this (`points`)."""

NUMBER_BYTES = 8
TELLS, ENDS = b"t", b"e"
"""What follows the number of a run: a frame of `live`, or the tally."""

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 24, 4, 38
_LAST_CAPABILITY = Path("/proc/sys/kernel/cap_last_cap")


@dataclass(frozen=True)
class _Run:
    number: bytes
    connection: socket.socket
    tally: Tally


class Reader:
    """Serves the executor until it hangs up.

    Args:
        control: a connected SOCK_SEQPACKET socket to the executor.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.epoll()
        self._buffer = memoryview(bytearray(wire.MAX_MESSAGE))
        self._runs: dict[int, _Run] = {}
        self._due: dict[int, float] = {}
        self._resting: dict[int, float] = {}
        self._busy: set[int] = set()

    def serve(self) -> None:
        """Returns when the executor hangs up."""
        control = self._control.fileno()
        self._control.setblocking(True)
        self._poll.register(control, select.EPOLLIN)
        while True:
            for descriptor, _ in self._poll.poll(self._patience()):
                if descriptor != control:
                    self._read(descriptor)
                elif not self._take():
                    return
            now = time.monotonic()
            if self._resting:
                self._rested(now)
            if self._due:
                self._tell(now)

    def _patience(self) -> float | None:
        """Seconds until something is to be done unasked; None when there is nothing."""
        first = min((*self._due.values(), *self._resting.values()), default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    def _take(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, NUMBER_BYTES, 1)
        if not data:
            return False
        if not descriptors:
            self._control.send(data)
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            self._runs[descriptor] = _Run(data, connection, Tally())
            self._poll.register(descriptor, select.EPOLLIN)
        return True

    def _read(self, descriptor: int) -> None:
        run = self._runs[descriptor]
        found = self._read_some(run)
        if found is None:
            self._end(descriptor)
            return
        if found < BATCH:
            self._rest(descriptor)
        else:
            self._busy.add(descriptor)
        if run.tally.is_due and descriptor not in self._due:
            self._tell_soon(descriptor, run.tally, time.monotonic())

    def _rest(self, descriptor: int) -> None:
        """Until it has rested, only the end of its trace wakes us."""
        self._poll.modify(descriptor, 0)
        self._resting[descriptor] = time.monotonic() + (SHORT_REST_S if descriptor in self._busy else REST_S)
        self._busy.discard(descriptor)

    def _rested(self, now: float) -> None:
        for descriptor in [one for one, until in self._resting.items() if until <= now]:
            del self._resting[descriptor]
            self._poll.modify(descriptor, select.EPOLLIN)

    def _tell_soon(self, descriptor: int, tally: Tally, now: float) -> None:
        tally.watch()
        self._due[descriptor] = now + live.INTERVAL_S

    def _read_some(self, run: _Run) -> int | None:
        """Reads at most `BATCH` messages and returns how many there were; None at the end of the trace."""
        buffer, receive, add = self._buffer, run.connection.recv_into, run.tally.add
        for count in range(BATCH):
            try:
                # With MSG_TRUNC the kernel tells how long the message was, not how much of it fitted.
                length = receive(buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return count
            except OSError:
                return None
            if not length:
                return None
            add(buffer[:length], whole=length <= len(buffer))
        return BATCH

    def _tell(self, now: float) -> None:
        """Sends a frame of each run whose time has come. An executor that is busy is asked again, not waited for."""
        for descriptor in [one for one, due in self._due.items() if due <= now]:
            run = self._runs[descriptor]
            tally = run.tally
            tally.settle()
            if tally.telling.is_due:
                with contextlib.suppress(BlockingIOError):
                    self._control.send(run.number + TELLS + tally.telling.frame(), socket.MSG_DONTWAIT)
                    tally.telling.sent()
            if tally.is_due:
                self._tell_soon(descriptor, tally, now)
            else:
                del self._due[descriptor]

    def _end(self, descriptor: int) -> None:
        run = self._runs.pop(descriptor)
        self._due.pop(descriptor, None)
        self._resting.pop(descriptor, None)
        self._busy.discard(descriptor)
        run.connection.close()  # and with it leaves the poll
        while run.tally.telling.is_due:
            self._control.send(run.number + TELLS + run.tally.telling.frame())
            run.tally.telling.sent()
        self._control.send(run.number + ENDS + run.tally.report())


def give_up_everything(uid: int, gid: int, parent: int) -> None:
    """Leaves root, every capability and every right to more; checks that it worked.

    Raises:
        OSError: the kernel refused.
        RuntimeError: something of it is left.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, argument: int) -> None:
        if libc.prctl(option, argument, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option} was refused")

    for capability in range(int(_LAST_CAPABILITY.read_text()) + 1):
        prctl(_PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)
    # Only now: a change of user takes the death signal away.
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for what, most in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0)):
        resource.setrlimit(what, (most, most))
    held = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Cap")]
    if any(int(line.split()[1], 16) for line in held) or os.getresuid() != (uid, uid, uid):
        raise RuntimeError("a capability or a user id is left")
    if os.getppid() != parent:
        raise RuntimeError("the executor is gone already")


def main() -> None:
    """Gives everything up, then serves."""
    descriptor, uid, gid = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the supervisor, which ends us in order
    parent = os.getppid()
    give_up_everything(uid, gid, parent)
    gc.freeze()
    with contextlib.suppress(BrokenPipeError), socket.socket(fileno=descriptor) as control:
        Reader(control).serve()


if __name__ == "__main__":
    main()
