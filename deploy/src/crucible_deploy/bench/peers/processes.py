"""Peers that are one command per program: the host's Python, `docker run`, bare runsc, bubblewrap."""

import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from crucible_deploy.bench import commands
from crucible_deploy.bench.bare import BareRunsc
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.peers.model import Peer, PeerAbsentError, Ran, Run
from crucible_deploy.environments import find_python

_PYTHON = "/usr/bin/python3"

Argv = Callable[[str], list[str]]
"""The command that runs a Python program."""


def native() -> Peer:
    """The host's own Python, behind nothing."""
    return Peer("native python3", partial(_each, lambda code: [str(find_python()), "-I", "-c", code]))


def bare_runsc(bare: BareRunsc) -> Peer:
    """`runsc run` of the executor's bundle."""
    return Peer("bare runsc run", partial(_each, lambda code: bare.argv(code, f"peer{secrets.token_hex(6)}")))


def bubblewrap(rootfs: Path) -> Peer:
    """Debian's bubblewrap around the executor's root file system."""
    argv = [
        "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--uid", "65534", "--gid", "65534",
        "--cap-drop", "ALL", "--clearenv", "--ro-bind", str(rootfs), "/", "--proc", "/proc", "--dev", "/dev",
        "--tmpfs", "/tmp", "--",  # noqa: S108  # the sandbox's own
        _PYTHON, "-c",
    ]  # fmt: skip

    @asynccontextmanager
    async def opened() -> AsyncIterator[Run]:
        if shutil.which("bwrap") is None:
            raise PeerAbsentError("bubblewrap is not installed: make bench-peers")
        async with _each(lambda code: [*argv, code]) as run:
            yield run

    return Peer("bubblewrap", opened)


def docker_run(name: str, address: str, image: str, *options: str) -> Peer:
    """`docker run` with Docker's own defaults, and these options."""
    argv = ["docker", "--host", address, "run", "--rm", *options, image, _PYTHON, "-c"]

    @asynccontextmanager
    async def opened() -> AsyncIterator[Run]:
        if shutil.which("docker") is None:
            raise PeerAbsentError("there is no docker command: make bench-peers")
        async with _each(lambda code: [*argv, code]) as run:
            yield run

    return Peer(name, opened)


@asynccontextmanager
async def _each(argv: Argv) -> AsyncIterator[Run]:
    async def run(code: str) -> Ran:
        done = await commands.run(argv(code))
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise BenchError(f"exit code {done.returncode}: {said}")
        return Ran(done.seconds, done.stdout)

    yield run
