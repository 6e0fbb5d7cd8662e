"""Which cgroups this machine has, and where."""

from __future__ import annotations

import os
from pathlib import Path

from crucible_executor.cgroups.cgroup import Cgroup, CgroupsUnavailableError, CgroupTree
from crucible_executor.cgroups.files import read
from crucible_executor.cgroups.v1 import CONTROLLERS as V1_CONTROLLERS
from crucible_executor.cgroups.v1 import FREEZER, CgroupTreeV1, CgroupV1
from crucible_executor.cgroups.v2 import CONTROLLERS as V2_CONTROLLERS
from crucible_executor.cgroups.v2 import CgroupTreeV2, CgroupV2

_V1_MOUNTS = Path("/sys/fs/cgroup")
_V2_FREEZER_SINCE = (5, 2)


def detect(name: str = "crucible", mountinfo: Path = Path("/proc/self/mountinfo")) -> CgroupTree:
    """The cgroup tree of this machine: v1 where v1 has the memory controller, else v2.

    Raises:
        CgroupsUnavailableError: neither has all that is needed.
    """
    v1, v2 = mounts(mountinfo)
    if "memory" in v1:
        missing = [controller for controller in V1_CONTROLLERS if controller not in v1]
        if missing:
            raise CgroupsUnavailableError(
                f"The cgroup v1 controllers {', '.join(missing)} are not mounted: mount them."
            )
        if v2 is not None and _kernel() >= _V2_FREEZER_SINCE:
            v1[FREEZER] = v2
        return CgroupTreeV1(v1, name)
    if v2 is None:
        raise CgroupsUnavailableError("No cgroups are mounted: mount cgroup2 at /sys/fs/cgroup.")
    missing = [one for one in V2_CONTROLLERS if one not in read(v2 / "cgroup.controllers").split()]
    if missing:
        raise CgroupsUnavailableError(
            f"The cgroup v2 controllers {', '.join(missing)} are not available in {v2}: enable them in the kernel, or "
            "run the executor where they are delegated."
        )
    return CgroupTreeV2(v2, name)


def of_process(pid: int, name: str) -> Cgroup:
    """The cgroup that somebody else made for a process and what belongs to it.

    `name` has to be a folder in its path in every hierarchy: nothing may ever be mistaken for it, for whoever asks is
    going to kill all that is in it.

    Raises:
        CgroupsUnavailableError: there is none with this name.
    """
    v1, v2 = mounts(Path("/proc/self/mountinfo"))
    paths: dict[str, str] = {}
    for line in read(Path(f"/proc/{pid}/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    made: CgroupV1 | CgroupV2
    if "memory" in v1:
        mounted = {one: v1.get(one, _V1_MOUNTS / one) for one in V1_CONTROLLERS}
        made = CgroupV1(name, {one: at / paths.get(one, "").lstrip("/") for one, at in mounted.items()})
    elif v2 is not None:
        made = CgroupV2(name, v2 / paths.get("", "").lstrip("/"))
    else:
        raise CgroupsUnavailableError("No cgroups are mounted: mount cgroup2 at /sys/fs/cgroup.")
    for folder in made.folders:
        if name not in str(folder) or not (folder / "cgroup.procs").is_file():
            raise CgroupsUnavailableError(f"Process {pid} is in no cgroup of its own for {name} ({folder}).")
    return made


def mounts(mountinfo: Path) -> tuple[dict[str, Path], Path | None]:
    """Where each controller of v1 is mounted, and v2; None: nowhere."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in read(mountinfo).splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        where = Path(fields.split(" ")[4])
        if kind == "cgroup2" and v2 is None:
            v2 = where
        elif kind == "cgroup":
            for option in options.split(","):
                v1.setdefault(option, where)
    return v1, v2


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-", 1)[0].split(".")[:2])
