"""A Docker daemon of the suite's own, inside the suite's namespaces: what its containers call "the host" is these.

Its folders, socket, runtimes and cgroups are apart from any Docker of the machine, it has no bridge and touches no
firewall, and its network is the suite's, which leads nowhere. What it makes lies in file systems of the suite's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docker import APIClient
from docker.errors import DockerException

from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.verify import namespaces

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_SAID_BYTES = 600
_LAYERS = (
    "overlay2/*/diff",
    "vfs/dir/*",
    "containerd/daemon/io.containerd.snapshotter.v1.*/snapshots/*/fs",
)
"""Where daemons keep the layers of images and containers, below their data folder, by storage driver."""

_STUBBORN = (Path("/run"), Path("/etc/docker"), Path("/opt/containerd"))
"""Where a daemon, its containerd and their shims write (sockets, a key, empty folders), whatever they are told."""


@dataclass(frozen=True)
class PrivateDockerd:
    """A daemon that answers.

    Attributes:
        address: for `Host.docker_host`.
        data: its data folder.
    """

    address: str
    data: Path

    def layers(self) -> list[Path]:
        """The trees that images and containers are made of."""
        return [folder for pattern in _LAYERS for folder in self.data.glob(pattern)]


@contextlib.contextmanager
def running(folder: Path, runsc: Path, cgroup: str) -> Iterator[PrivateDockerd]:
    """Starts it, waits until it answers, and stops it at the end.

    Args:
        folder: for all its files; made here, in a file system that goes with the suite.
        runsc: becomes its runtime `runsc`.
        cgroup: the name of the parent of its containers' cgroups, of its own.

    Raises:
        EngineUnavailableError: there is no dockerd, or it did not start; says why.
    """
    dockerd = shutil.which("dockerd")
    if dockerd is None:
        raise EngineUnavailableError(
            "dockerd is not installed, so the engines `docker` and `docker-gvisor` cannot be judged here: install "
            "Docker (Debian: docker.io)."
        )
    folder.mkdir(mode=0o711)
    with contextlib.ExitStack() as cleanup:
        for path in _STUBBORN:
            cleanup.enter_context(_hidden(path))
        daemon = _start(dockerd, folder, runsc, cgroup)
        cleanup.callback(_stop, daemon)
        made = PrivateDockerd(f"unix://{folder}/socket", folder / "data")
        _wait(daemon, made.address, folder / "log")
        yield made


@contextlib.contextmanager
def _hidden(folder: Path) -> Iterator[None]:
    """Lays an empty file system over a folder; one that there was not is removed again."""
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    namespaces.mount("crucible-verify", str(folder), "tmpfs", namespaces.MS_NODEV | namespaces.MS_NOSUID, "mode=0755")
    try:
        yield
    finally:
        namespaces.unmount(str(folder))
        if made:
            with contextlib.suppress(OSError):  # a Docker of the machine's has begun to use it
                folder.rmdir()


def _start(dockerd: str, folder: Path, runsc: Path, cgroup: str) -> subprocess.Popen[bytes]:
    runsc_runtime = {"path": str(runsc), "runtimeArgs": ["--network=none", "--platform=systrap"]}
    (folder / "daemon.json").write_text(json.dumps({"runtimes": {"runsc": runsc_runtime}}))
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [
                dockerd, f"--config-file={folder}/daemon.json", f"--data-root={folder}/data",
                f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--host=unix://{folder}/socket",
                "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--userland-proxy=false",
                "--bridge=none", "--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{cgroup}",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "TMPDIR": str(folder)},
        )  # fmt: skip


def _wait(daemon: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(DockerException):
            APIClient(base_url=address, timeout=5).close()
            return
        if daemon.poll() is not None or time.monotonic() > deadline:
            how = "ended" if daemon.poll() is not None else f"did not answer within {_START_SECONDS:g} s"
            said = log.read_bytes()[-_SAID_BYTES:].decode(errors="replace").strip()
            raise EngineUnavailableError(f"The suite's own dockerd {how}: {said}")
        time.sleep(0.05)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    """Ends it in order; a daemon that hangs is killed, and what it started ends with the suite's PID namespace."""
    daemon.terminate()
    try:
        daemon.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
