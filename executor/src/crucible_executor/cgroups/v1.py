"""cgroup v1: a hierarchy per controller; on a hybrid machine v2 beside it freezes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from crucible_executor.cgroups import freezer
from crucible_executor.cgroups.cgroup import (
    CPU_PERIOD_US,
    Bounds,
    Cgroup,
    CgroupTree,
    Counters,
    make,
    make_parent,
)
from crucible_executor.cgroups.files import children, field, read, removed, write
from crucible_executor.cgroups.oom import EventfdWatch, OomWatch

CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
FREEZER = "freezer"
"""Of v1, or on a hybrid machine the v2 hierarchy, where frozen processes can be killed; where there is none, nothing is
frozen, and only a pool of waiting sandboxes is missed."""


class CgroupV1(Cgroup):
    """A sandbox's cgroup of v1; see `Cgroup`."""

    def __init__(self, name: str, folders: dict[str, Path]) -> None:
        super().__init__(name, tuple(dict.fromkeys(folders.values())))
        self._memory = folders["memory"]
        self._cpu = folders["cpu"]
        self._cpuacct = folders["cpuacct"]
        self._tasks = folders["pids"]
        self._freezer = folders.get(FREEZER)

    def bound(self, bounds: Bounds) -> None:
        """Sets memory with and without swap, and the number of tasks; see `Cgroup.bound`."""
        limits = [f"{self._memory}/memory.limit_in_bytes"]
        with_swap = f"{self._memory}/memory.memsw.limit_in_bytes"
        if now := read(with_swap):  # absent where the kernel does not account swap
            limits.append(with_swap)
            if int(now) < bounds.memory_bytes:
                limits.reverse()  # the limit with swap is never below the one without
        for limit in limits:
            write(limit, bounds.memory_bytes)
        write(f"{self._memory}/memory.swappiness", 0)
        write(f"{self._tasks}/pids.max", bounds.tasks)

    @property
    def can_freeze(self) -> bool:
        """Whether a hierarchy that freezes is mounted."""
        return self._freezer is not None

    def freeze(self) -> None:
        """See `Cgroup.freeze`."""
        if self._freezer is None:
            raise OSError("this machine mounts no freezer controller")
        freezer.set_frozen(self._freezer, True)

    def thaw(self) -> None:
        """See `Cgroup.thaw`."""
        if self._freezer is not None:
            freezer.set_frozen(self._freezer, False)

    def frozen(self) -> bool:
        """See `Cgroup.frozen`."""
        return self._freezer is not None and freezer.is_frozen(self._freezer)

    def memory_bytes(self) -> int:
        """`memory.usage_in_bytes`."""
        return int(read(f"{self._memory}/memory.usage_in_bytes") or 0)

    def limit_cpus(self, cpus: float) -> None:
        """Sets `cpu.cfs_quota_us`, of a period of 100 ms."""
        write(f"{self._cpu}/cpu.cfs_quota_us", max(1000, int(cpus * CPU_PERIOD_US)))

    def limit_tasks(self, tasks: int) -> None:
        """Sets `pids.max`."""
        write(f"{self._tasks}/pids.max", tasks)

    def _free_cpus(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            write(f"{self._cpu}/cpu.cfs_quota_us", -1)

    def oom_kills(self) -> int:
        """`oom_kill` of `memory.oom_control`."""
        return field(f"{self._memory}/memory.oom_control", "oom_kill")

    def watch_oom(self) -> OomWatch:
        """See `Cgroup.watch_oom`."""
        return EventfdWatch(self._memory)

    def refused_tasks(self) -> int:
        """`max` of `pids.events`."""
        return field(f"{self._tasks}/pids.events", "max")

    def peak_memory_bytes(self) -> int | None:
        """`memory.max_usage_in_bytes`."""
        text = read(f"{self._memory}/memory.max_usage_in_bytes")
        return int(text) if text else None

    def cpu_time(self) -> timedelta:
        """`cpuacct.usage`."""
        return timedelta(microseconds=int(read(f"{self._cpuacct}/cpuacct.usage") or 0) // 1000)

    def counters(self) -> Counters | None:
        """`cpuacct.usage`, `memory.usage_in_bytes` and `pids.current`."""
        cpu = read(f"{self._cpuacct}/cpuacct.usage")
        memory = read(f"{self._memory}/memory.usage_in_bytes")
        tasks = read(f"{self._tasks}/pids.current")
        if not (cpu and memory and tasks):
            return None
        return Counters(timedelta(microseconds=int(cpu) // 1000), int(memory), int(tasks))

    def _signal_all(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class CgroupTreeV1(CgroupTree):
    """cgroup v1: one hierarchy per controller; `mounts` says where each lies."""

    def __init__(self, mounts: dict[str, Path], name: str) -> None:
        used = [*CONTROLLERS, *([FREEZER] if FREEZER in mounts else [])]
        self._parents = {controller: mounts[controller] / name for controller in used}

    @property
    def folders(self) -> tuple[Path, ...]:
        """Ours in each hierarchy."""
        return tuple(dict.fromkeys(self._parents.values()))

    def prepare(self) -> None:
        """Makes the folder in every hierarchy."""
        for folder in self._parents.values():
            make_parent(folder)

    def create(self, name: str, bounds: Bounds) -> Cgroup:
        """Makes a cgroup in every hierarchy."""
        cgroup = CgroupV1(name, {controller: parent / name for controller, parent in self._parents.items()})
        make(cgroup, bounds)
        return cgroup

    def existing(self) -> list[Cgroup]:
        """All cgroups in any hierarchy."""
        names = {name for parent in self._parents.values() for name in children(parent)}
        return [CgroupV1(name, {key: parent / name for key, parent in self._parents.items()}) for name in sorted(names)]

    def discard(self) -> None:
        """Removes our folders, where empty."""
        for folder in self._parents.values():
            removed(folder)
