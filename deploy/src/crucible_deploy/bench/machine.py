"""The machine that the figures are of."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from crucible_deploy.paths import Paths

_BUSY_LOAD_PER_CORE = 0.25


@dataclass(frozen=True)
class Machine:
    """What a reader of the figures must know.

    Attributes:
        cpu: the model, as the kernel names it.
        cores: that this process may use.
        kernel: its release.
        memory_mib: all there is.
        cgroups: `v1`, `hybrid` or `v2`.
        versions: by name.
        load_at_start: the load average of one minute before anything was measured.
        load_at_end: after everything; mostly the bench's own.
    """

    cpu: str
    cores: int
    kernel: str
    memory_mib: int
    cgroups: str
    versions: dict[str, str]
    load_at_start: float
    load_at_end: float | None = None

    @property
    def was_busy(self) -> bool:
        """Whether others used the machine when the bench began: its figures are then worth little."""
        return self.load_at_start > _BUSY_LOAD_PER_CORE * self.cores

    def lines(self) -> list[str]:
        """For people."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        end = "" if self.load_at_end is None else f", {self.load_at_end:.2f} at the end"
        shown = [
            f"{self.cpu}, {self.cores} cores, {self.memory_mib} MiB, Linux {self.kernel}, cgroups {self.cgroups}",
            versions,
            f"load {self.load_at_start:.2f} at the start{end}",
        ]
        if self.was_busy:
            shown.append("WARNING: the machine was busy before the bench began; its latencies are upper bounds at best")
        return shown


def look(paths: Paths) -> Machine:
    """Names this machine."""
    return Machine(
        cpu=_after_colon(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        memory_mib=int((_after_colon(Path("/proc/meminfo"), "MemTotal") or "0").split()[0]) >> 10,
        cgroups=_cgroups(Path("/sys/fs/cgroup")),
        versions=_versions(paths),
        load_at_start=os.getloadavg()[0],
    )


def _after_colon(file: Path, name: str) -> str | None:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _cgroups(root: Path) -> str:
    if (root / "cgroup.controllers").is_file():
        return "v2"
    return "hybrid" if (root / "unified").is_dir() else "v1"


def _versions(paths: Paths) -> dict[str, str]:
    found = {
        "crucible": metadata.version("crucible-deploy"),
        "Python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "runsc": paths.runsc.resolve().parent.name,
    }
    for name, argv, word in (("dockerd", ["dockerd", "--version"], 2), ("bwrap", ["bwrap", "--version"], 1)):
        if shutil.which(argv[0]):
            said = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout.split()
            found[name] = said[word].rstrip(",") if len(said) > word else "unknown"
    return found
