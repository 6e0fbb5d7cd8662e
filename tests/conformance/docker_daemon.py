"""A real dockerd of the tests' own: its folders, socket and runtimes are apart from any Docker of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import APIClient
from docker.errors import DockerException

START_S = 60.0


class DockerDaemon:
    """Its folders, and the process while there is one."""

    def __init__(self, runsc: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="crucible-dockerd-"))
        runsc_runtime = {"path": str(runsc), "runtimeArgs": ["--network=none", "--platform=systrap"]}
        (self._folder / "daemon.json").write_text(json.dumps({"runtimes": {"runsc": runsc_runtime}}))
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def address(self) -> str:
        return f"unix://{self._folder}/socket"

    def start(self) -> None:
        """Starts it and waits until it answers. Again at the same address after `kill`, and knows nothing any more."""
        folder = self._folder
        self._starts += 1
        state = folder / str(self._starts)
        state.mkdir()
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dockerd", f"--config-file={folder}/daemon.json", f"--data-root={state}/data",
                    f"--exec-root={state}/exec", f"--pidfile={state}/pid", f"--host={self.address}",
                    "--iptables=false", "--bridge=none", "--exec-opt=native.cgroupdriver=cgroupfs",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"dockerd did not start: {(folder / 'log').read_text()[-2000:]}")
            with contextlib.suppress(DockerException):
                APIClient(base_url=self.address, timeout=5).close()
                return
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL for it, its containerd and its shims: all of Docker but what the containers run."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pid in _helpers(self._folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while _helpers(self._folder):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def remove(self) -> None:
        """Ends it by its process and removes its folders."""
        try:
            if self._process is not None:
                self._process.terminate()
                self._process.wait(30)
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            _unmount_below(self._folder)
            shutil.rmtree(self._folder)


@contextlib.contextmanager
def running(runsc: Path) -> Iterator[DockerDaemon]:
    """Starts one, and removes it in the end."""
    if shutil.which("dockerd") is None:
        pytest.fail("dockerd is missing: `make test` installs it (Debian: docker.io)")
    daemon = DockerDaemon(runsc)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.remove()


def _helpers(folder: Path) -> list[int]:
    """containerd and the shims of the daemon in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = process.joinpath("cmdline").read_bytes()
            if argv.partition(b"\0")[0].rpartition(b"/")[2].startswith(b"containerd") and str(folder).encode() in argv:
                found.append(int(process.name))
    return found


def _unmount_below(folder: Path) -> None:
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([one for one in mounts if one.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", mount], check=False)
