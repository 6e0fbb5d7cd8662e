"""A child process on the host, watched by its pidfd: no thread per process and no SIGCHLD handler."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class HostProcess:
    """A started child. `exited` becomes its exit code (negative: the signal) once it is reaped.

    Must be made on the event loop's own thread: a parent-death signal is bound to the thread that forks.

    Raises:
        OSError: it could not be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        env: Mapping[str, str],
        cwd: Path = Path("/"),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        # subprocess uses vfork here: starting costs the same however large the executor is.
        self._process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.wait()  # a zombie by now: returns at once
        if not self.exited.done():
            self.exited.set_result(code)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; nothing when it has ended."""
        if not self.exited.done():
            self._process.send_signal(number)
