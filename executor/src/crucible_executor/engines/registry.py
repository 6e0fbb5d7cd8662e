"""Every engine by its name: adding one is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crucible_executor import cgroups
from crucible_executor.engines.base import Engine
from crucible_executor.engines.docker import DockerEngine, DockerGvisorEngine
from crucible_executor.engines.gvisor import GvisorEngine, GvisorPaths
from crucible_executor.engines.subprocess import SubprocessEngine
from crucible_executor.images import ImageStore
from crucible_executor.tracing.tracer import UNTRACED, Tracing


@dataclass(frozen=True)
class Host:
    """Where an engine finds what it needs on this machine, from the executor's settings.

    `init_dir` is what `executor/init/build.sh` printed, `run_dir` a folder (better: a tmpfs) for what lives no longer
    than a sandbox; each engine takes its own folder in it. `cgroup` names our folder in the cgroup tree: two executors
    on one machine take different ones, or they would sweep each other's sandboxes away; it also marks our containers.
    `tracer` watches what programs try, where an engine can be watched.
    """

    runsc: Path
    init_dir: Path
    images: Path
    run_dir: Path
    cgroup: str = "crucible"
    docker_host: str = "unix:///var/run/docker.sock"
    tracer: Tracing = UNTRACED


ENGINES: dict[str, Callable[[Host], Engine]] = {
    "gvisor": lambda host: GvisorEngine(
        GvisorPaths(
            host.runsc, host.init_dir / "crucible-init", host.init_dir / "crucible-launch", host.run_dir / "gvisor"
        ),
        ImageStore(host.images),
        cgroups.detect(host.cgroup),
        host.tracer,
    ),
    "docker-gvisor": lambda host: DockerGvisorEngine(
        host.docker_host, host.init_dir / "crucible-init", ImageStore(host.images), host.cgroup
    ),
    "docker": lambda host: DockerEngine(
        host.docker_host, host.init_dir / "crucible-init", ImageStore(host.images), host.cgroup
    ),
    "subprocess": lambda host: SubprocessEngine(host.init_dir / "crucible-tend", host.run_dir / "subprocess"),
}
"""Raises `EngineUnavailableError` or, at once, `CgroupsUnavailableError` where the machine lacks something."""

UNSAFE = frozenset({"subprocess"})
"""Engines without isolation: the executor offers them only when it was started with `--unsafe`."""
