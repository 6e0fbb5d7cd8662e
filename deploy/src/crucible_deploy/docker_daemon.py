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


@contextlib.contextmanager
def running(runsc: Path) -> Iterator[str]:
    """Starts one with gVisor as its runtime `runsc`, yields its address, and ends it with its folders.

    Raises:
        DockerDaemonError: there is no dockerd, or it does not start.
    """
    if shutil.which("dockerd") is None:
        raise DockerDaemonError("dockerd is missing; Debian's package is docker.io")
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    runsc_runtime = {"path": str(runsc), "runtimeArgs": ["--network=none", "--platform=systrap"]}
    (folder / "daemon.json").write_text(json.dumps({"runtimes": {"runsc": runsc_runtime}}))
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                "dockerd", f"--config-file={folder}/daemon.json", f"--data-root={folder}/data",
                f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--host=unix://{folder}/socket",
                "--iptables=false", "--bridge=none", "--exec-opt=native.cgroupdriver=cgroupfs",
            ],
            # A session of its own: Ctrl-C at the terminal ends it through us, after its containers.
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(daemon, folder / "socket", folder / "log")
        yield f"unix://{folder}/socket"
    finally:
        _end(daemon)
        _end_left(folder)
        mounts.remove_tree(folder)


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
