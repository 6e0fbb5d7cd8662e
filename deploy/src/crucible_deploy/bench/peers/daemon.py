"""The Docker daemon of the bench, for peers and engines of ours, with the executor's root file system as an image."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy import docker_daemon
from crucible_deploy.bench import commands
from crucible_deploy.bench.commands import Command, to_the_end
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.peers.model import PeerAbsentError
from crucible_deploy.docker_daemon import DockerDaemonError

IMAGE = "crucible-bench:latest"
_IMPORT_S = 300.0


@dataclass(frozen=True)
class Docker:
    """A daemon that runs; `image` is the executor's root file system in it, `rootfs` the same as a folder."""

    address: str
    image: str
    rootfs: Path


@asynccontextmanager
async def daemon(runsc: Path, rootfs: Path) -> AsyncIterator[Docker]:
    """A daemon with the image, gone afterwards.

    Raises:
        PeerAbsentError: this machine has no Docker, or it does not start.
    """
    with ExitStack() as held:
        running = docker_daemon.running(runsc)
        try:
            address = (await to_the_end(lambda: held.enter_context(running))).address
        except DockerDaemonError as error:
            raise PeerAbsentError(f"{error} (make bench-peers)") from error
        try:
            await _import(address, rootfs)
            yield Docker(address, IMAGE, rootfs)
        finally:
            await to_the_end(held.close)


async def _import(address: str, rootfs: Path) -> None:
    """`docker import` of the tree, with what a library expects: the name `python`, and a command that stays."""
    unpack = """docker --host "$3" import --change 'CMD ["/bin/bash"]' - "$4\""""
    pack = f'tar -C "$1" -c . -C "$2" usr/local/bin/python | {unpack}'
    with tempfile.TemporaryDirectory(prefix="crucible-bench-") as extra:
        folder = Path(extra) / "usr" / "local" / "bin"
        folder.mkdir(parents=True)
        (folder / "python").symlink_to("/usr/bin/python3")
        command = Command(["/bin/sh", "-euc", pack, "import", str(rootfs), extra, address, IMAGE])
        try:
            done = await to_the_end(lambda: command.run(timeout_s=_IMPORT_S), stop=command.end)
        except BenchError as error:
            raise PeerAbsentError(f"the image could not be imported: {error}") from error
    if done.returncode != 0 or not done.stdout.startswith(b"sha256:"):
        raise PeerAbsentError(f"the image could not be imported: {done.stderr.decode(errors='replace')[-300:]}")


async def version(address: str) -> str:
    """The daemon's version; empty when it does not say."""
    argv = ["docker", "--host", address, "version", "--format", "{{.Server.Version}}"]
    done = await commands.run(argv)
    return done.stdout.decode(errors="replace").strip()
