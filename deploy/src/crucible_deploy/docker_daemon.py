"""A real dockerd of our own, for tests and the benchmarks.

Its folders, socket and runtimes are apart from any Docker of the machine, which is not touched. It has no bridge: its
containers get no network unless they share the host's.
"""

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from crucible_deploy import host, mounts
from crucible_deploy.identity import ProcessIdentity

START_S = 60.0
_STOP_S = 30.0
_LOOK_S = 0.05
_PREFIX = "crucible-dockerd-"


class DockerDaemonError(Exception):
    """No dockerd could be started; the text says why."""


class DockerDaemon:
    """One dockerd with gVisor as its runtime `runsc`: its folder, and the process while there is one.

    Args:
        runsc: becomes the runtime.

    Raises:
        DockerDaemonError: there is no dockerd.
    """

    def __init__(self, runsc: Path) -> None:
        if shutil.which("dockerd") is None:
            raise DockerDaemonError("dockerd is missing; Debian's package is docker.io")
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        runsc_runtime = {"path": str(runsc), "runtimeArgs": ["--network=none", "--platform=systrap"]}
        (self._folder / "daemon.json").write_text(json.dumps({"runtimes": {"runsc": runsc_runtime}}))
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def address(self) -> str:
        """Where it listens; the same over starts."""
        return f"unix://{self._folder}/socket"

    def start(self) -> None:
        """Starts it and waits until it answers. After `kill` it starts anew, and knows nothing of before.

        Raises:
            DockerDaemonError: it does not start.
        """
        self._starts += 1
        state = self._folder / str(self._starts)
        state.mkdir()
        log = self._folder / "log"
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [
                    "dockerd", f"--config-file={self._folder}/daemon.json", f"--data-root={state}/data",
                    f"--exec-root={state}/exec", f"--pidfile={state}/pid", f"--host={self.address}",
                    "--iptables=false", "--bridge=none", "--exec-opt=native.cgroupdriver=cgroupfs",
                ],
                # A session of its own: Ctrl-C at the terminal ends it through us, after its containers.
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        _wait(self._process, self._folder / "socket", log)

    def kill(self) -> None:
        """SIGKILL for it, its containerd and its shims: all of Docker but what the containers run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        _end_left(self._folder)

    def remove(self) -> None:
        """Ends it in order and removes its folder."""
        if self._process is not None:
            _end(self._process)
        _end_left(self._folder)
        mounts.remove_tree(self._folder)


@contextlib.contextmanager
def running(runsc: Path) -> Iterator[DockerDaemon]:
    """A daemon that answers; removed in the end.

    Raises:
        DockerDaemonError: there is no dockerd, or it does not start.
    """
    daemon = DockerDaemon(runsc)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.remove()


def _wait(daemon: subprocess.Popen[bytes], socket_file: Path, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(socket_file):
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise DockerDaemonError(f"dockerd did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(_LOOK_S)


def _answers(socket_file: Path) -> bool:
    connection = http.client.HTTPConnection("localhost", timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        connection.sock.connect(str(socket_file))
        connection.request("GET", "/_ping")
        return connection.getresponse().status == http.client.OK
    return False


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _end_left(folder: Path) -> None:
    """A shim that was just being started or ended when its daemon went stays for ever; it names its daemon's folder."""
    for pid in host.sandbox_processes(folder):
        left = ProcessIdentity.of(pid)
        if left is not None:
            left.signal(signal.SIGKILL)
            left.wait_gone(_STOP_S)
