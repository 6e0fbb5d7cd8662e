"""What the ten hostile programs must not have done, seen from the host."""

import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from crucible_client import Evaluation
from crucible_deploy import host
from crucible_deploy.hostile import Hostile
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import Layout

_GONE_SECONDS = 5.0


class Judges:
    """Lays out bait on the host and looks afterwards whether it was touched; a context that removes the bait.

    Args:
        layout: of the stack that runs the programs.
        executor: the stack's executor, which must still be the same process afterwards.
    """

    def __init__(self, layout: Layout, executor: ProcessIdentity) -> None:
        self._layout = layout
        self._executor = executor
        self._secret = secrets.token_hex(16)
        self._folder = Path(tempfile.mkdtemp(prefix="crucible-bait-"))
        self._folder.chmod(0o777)  # the host's file permissions shall protect nothing here: the sandbox alone does
        self._canary = self._folder / "canary"
        self._canary.write_text(self._secret)
        self._canary.chmod(0o666)
        self._before = self._bait()
        self._listeners = _listen_everywhere()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            listener.close()
        shutil.rmtree(self._folder)

    def arguments(self, program: Hostile) -> tuple[str, ...]:
        """Where on the host this program is told to try."""
        if program.name == "opening a connection":
            return (str(self._listeners[0].getsockname()[1]), *_own_addresses())
        if program.name in ("reading secrets", "writing outside"):
            more = (self._layout.client_file, self._layout.pki / "ca.key", self._layout.pki / "storage" / "tickets.key")
            return (str(self._canary), *map(str, more if program.name == "reading secrets" else ()))
        return ()

    def faults(self, program: Hostile, evaluation: Evaluation, stdout: bytes) -> list[str]:
        """What the host shows that must not be, in words; empty when all is well. Every judge looks every time."""
        found = []
        left = host.wait_for_none(self._layout, _GONE_SECONDS, spare_waiting=True)
        if left:
            found.append(f"left on the host: {left}")
        if not self._executor.alive:
            found.append("the executor was killed")
        if self._bait() != self._before:
            found.append("a file on the host was changed")
        calls = _contacts(self._listeners)
        if calls:
            found.append(f"reached a listener of the host: {calls}")
        if any(secret and secret.encode() in stdout for secret in self._secrets()):
            found.append("printed a secret of the host")
        kept, limit = evaluation.stdout.bytes_kept, program.limits.output_bytes
        if limit is not None and (kept > limit or len(stdout) > limit):
            found.append(f"{kept} bytes of output kept, {limit} allowed")
        return found

    def shown(self, program: Hostile, evaluation: Evaluation) -> str:
        """What the host shows when there is no fault, for the table."""
        if program.name == "reading secrets":
            return "the canary's secret and the stack's keys are not in its output"
        if program.name == "opening a connection":
            return "the host's listeners (TCP and UDP) saw nothing"
        if program.name == "writing outside":
            return "the host's canary and its folder are as before"
        if program.name == "killing its parent":
            return f"executor {self._executor.pid} lives on; no process left"
        if program.name == "endless output":
            return f"{evaluation.stdout.bytes_kept} bytes kept of {evaluation.stdout.bytes_total}"
        return "no process, cgroup or mount left"

    def _bait(self) -> list[tuple[str, bytes, int, int]]:
        """Names, contents, modes and times of change of the bait."""
        found = []
        for path in sorted(self._folder.iterdir()):
            status = path.lstat()
            found.append((path.name, path.read_bytes(), status.st_mode, status.st_ctime_ns))
        return found

    def _secrets(self) -> list[str]:
        shadow = Path("/etc/shadow").read_text().splitlines()
        hashes = [line.split(":")[1] for line in shadow if line.count(":") > 2]
        key = self._layout.client_file.read_text().split('api_key = "')[1].split('"')[0]
        pem = (self._layout.pki / "ca.key").read_text().splitlines()[1]
        environment = [value for name, value in os.environ.items() if "KEY" in name or "TOKEN" in name]
        return [self._secret, key, pem, *(one for one in (*hashes, *environment) if len(one) > 12)]


def _listen_everywhere() -> list[socket.socket]:
    """A TCP and a UDP socket on one port of all addresses."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.bind(("0.0.0.0", 0))  # noqa: S104  # bait: whatever address the program finds must lead here
    stream.listen(16)
    stream.setblocking(False)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.bind(stream.getsockname())
    datagram.setblocking(False)
    return [stream, datagram]


def _contacts(listeners: list[socket.socket]) -> list[str]:
    """Who called since the last look."""
    found = []
    for listener in listeners:
        while True:
            try:
                if listener.type == socket.SOCK_STREAM:
                    connection, peer = listener.accept()
                    connection.close()
                else:
                    _, peer = listener.recvfrom(64)
            except BlockingIOError:
                break
            found.append(str(peer))
    return found


def _own_addresses() -> tuple[str, ...]:
    """The IPv4 addresses of this machine other than loopback."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    except OSError:
        found = set()
    return tuple(sorted(found - {"127.0.0.1"}))
