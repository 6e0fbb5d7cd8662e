"""The engines `docker` (runc) and `docker-gvisor` (runsc, registered with dockerd): a container per program.

Docker's own limits and flags carry the policy: root read-only, sized tmpfs, every capability dropped but the four that
the init needs, no_new_privs, Docker's seccomp profile, no network, no log, memory without swap. No path of the host is
mounted. What the daemon does not say early or exactly enough is read from the container's cgroup, beside the daemon.

- memory: Docker's limit; the OOM killer's count of the container's cgroup, or the kernel's event of it where the cgroup
  went with its last process. CPU time, peak memory and refused processes: the cgroup's counters.
- processes: with runc the cgroup's pids limit, exactly; the program's uid is shared by all containers, so RLIMIT_NPROC
  could not do it. With runsc the sentry enforces RLIMIT_NPROC, as in the gvisor engine.
- disk: the size of a tmpfs at `/workspace`, `/tmp` and `/dev/shm` each. Inodes: `nr_inodes`, which only runc knows. How
  full they are tells the host's kernel with runc, the init with runsc.
- end: every process of the cgroup is killed from here, so that a daemon which hangs cannot keep a program alive.

A shared kernel (`docker`) also shows what gVisor hides: the host's kernel, its command line, its mounts' paths.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from crucible_executor.cgroups import CgroupsUnavailableError
from crucible_executor.docker_config import RUNC, RUNSC, Kind, lacking
from crucible_executor.docker_images import DockerImages
from crucible_executor.docker_sandbox import DockerSandbox, remove
from crucible_executor.dockerd import PING_S, Daemon, DaemonError, MissingError
from crucible_executor.engines.base import Capabilities, Engine, EngineUnavailableError, Sandbox
from crucible_executor.images import Image, ImageNotFoundError, ImageStore
from crucible_executor.model import Limit, SandboxClass
from crucible_executor.selftest import engine as engine_test

_OWNER_LABEL = "crucible"
_ENGINE_LABEL = "crucible.engine"


class _Engine(Engine):
    def __init__(self, kind: Kind, docker_host: str, init: Path, images: ImageStore, owner: str) -> None:
        self._kind = kind
        self._daemon = Daemon(docker_host)
        self._images = images
        self._imported = DockerImages(self._daemon, init)
        self._labels = {_OWNER_LABEL: owner, _ENGINE_LABEL: kind.name}
        self._version = "unknown"
        self._not_swept = ""
        self._alive: dict[str, DockerSandbox] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What this engine promises; its version is known after `check`."""
        kind = self._kind
        return Capabilities(kind.name, self._version, kind.isolation, kind.enforces, kind.not_observable)

    async def check(self) -> None:
        """Asks dockerd what it and the kernel can do, and runs the self-test."""
        if os.geteuid() != 0:
            raise EngineUnavailableError(f"The {self._kind.name} engine needs root (Docker's socket, cgroups).")
        try:
            self._daemon.socket_path  # noqa: B018  # says what is wrong with the setting
            await self._daemon.call("Docker cannot be used", lambda client: client.ping(), PING_S)
            info = await self._daemon.call("Docker cannot be used", lambda client: client.info())
        except DaemonError as error:
            raise EngineUnavailableError(str(error)) from error
        reason = self._not_swept or lacking(info, self._kind.runtime)
        if reason:
            raise EngineUnavailableError(reason)
        self._version = f"{info.get('ServerVersion', 'of no version')} ({self._kind.runtime})"
        if not self._images.names():
            raise EngineUnavailableError("There is no image to run a container on: run `make images`.")
        await engine_test.prove(self)

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        """Boots a container up to its init, which then waits for its program."""
        if sandbox_class.disk_inodes is not None and Limit.DISK_INODES not in self._kind.enforces:
            raise EngineUnavailableError(f"The {self._kind.name} engine cannot limit inodes: leave disk_inodes unset.")
        try:
            image = self._images.resolve(sandbox_class.image_digest)
            for last_try in (False, True):
                try:
                    return await self._boot(image, sandbox_class)
                except MissingError:
                    self._imported.forget(image)
                    if last_try:
                        raise
        except (ImageNotFoundError, DaemonError, CgroupsUnavailableError, OSError) as error:
            raise EngineUnavailableError(str(error)) from error
        raise AssertionError("unreachable")

    async def _boot(self, image: Image, sandbox_class: SandboxClass) -> Sandbox:
        imported = await self._imported.ensure(image)
        sandbox = DockerSandbox(self._kind, self._daemon, sandbox_class, self._alive)
        try:
            await sandbox.boot(imported, self._labels)
        except BaseException:
            await asyncio.shield(sandbox.destroy())
            raise
        return sandbox

    async def sweep(self) -> int:
        """Removes every container with our labels that this process does not hold.

        Where dockerd does not answer, nothing can be swept; `check` then refuses this engine, and no other suffers.
        """
        self._not_swept = ""
        try:
            await self._daemon.call("Docker cannot be used", lambda client: client.ping(), PING_S)
        except DaemonError:
            return 0
        labels = [f"{key}={value}" for key, value in self._labels.items()]
        try:
            found = await self._daemon.call(
                "The containers could not be listed",
                lambda client: client.containers(all=True, filters={"label": labels}),
            )
            left = [one["Id"] for one in found if not any(name.lstrip("/") in self._alive for name in one["Names"])]
            for container in left:
                await remove(self._daemon, container)
        except DaemonError as error:
            self._not_swept = f"What an earlier executor left cannot be removed. {error}"
            return 0
        return len(left)


class DockerEngine(_Engine):
    """Runs each program in a container of its own on the host's kernel."""

    def __init__(self, docker_host: str, init: Path, images: ImageStore, owner: str) -> None:
        """`owner` marks our containers: two executors on one machine take different ones."""
        super().__init__(RUNC, docker_host, init, images, owner)


class DockerGvisorEngine(_Engine):
    """Runs each program in a container of its own on gVisor's kernel, by dockerd's runtime `runsc`."""

    def __init__(self, docker_host: str, init: Path, images: ImageStore, owner: str) -> None:
        """`owner` marks our containers: two executors on one machine take different ones."""
        super().__init__(RUNSC, docker_host, init, images, owner)
