"""A real dockerd of the tests' own: its folders, socket and runtimes are apart from any Docker of the machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import APIClient
from docker.errors import DockerException

START_S = 60.0


@contextlib.contextmanager
def running(runsc: Path) -> Iterator[str]:
    """Starts it, yields its address, ends it by its process and removes its folders."""
    if shutil.which("dockerd") is None:
        pytest.fail("dockerd is missing: `make test` installs it (Debian: docker.io)")
    folder = Path(tempfile.mkdtemp(prefix="crucible-dockerd-"))
    runsc_runtime = {"path": str(runsc), "runtimeArgs": ["--network=none", "--platform=systrap"]}
    (folder / "daemon.json").write_text(json.dumps({"runtimes": {"runsc": runsc_runtime}}))
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                "dockerd", f"--config-file={folder}/daemon.json", f"--data-root={folder}/data",
                f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--host=unix://{folder}/socket",
                "--iptables=false", "--bridge=none", "--exec-opt=native.cgroupdriver=cgroupfs",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    address = f"unix://{folder}/socket"
    try:
        _wait(daemon, address, folder / "log")
        yield address
    finally:
        daemon.terminate()
        try:
            daemon.wait(30)
        finally:
            daemon.kill()
            daemon.wait()
            _unmount_below(folder)
            shutil.rmtree(folder)


def _wait(daemon: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        if daemon.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"dockerd did not start: {log.read_text()[-2000:]}")
        with contextlib.suppress(DockerException):
            APIClient(base_url=address, timeout=5).close()
            return
        time.sleep(0.05)


def _unmount_below(folder: Path) -> None:
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([one for one in mounts if one.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", mount], check=False)
