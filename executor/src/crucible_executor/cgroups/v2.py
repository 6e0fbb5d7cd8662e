"""cgroup v2: one hierarchy."""

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
    CgroupsUnavailableError,
    CgroupTree,
    Counters,
    make,
    make_parent,
)
from crucible_executor.cgroups.files import children, field, of_lines, read, removed, write
from crucible_executor.cgroups.oom import EventsWatch, OomWatch

CONTROLLERS = ("memory", "cpu", "pids")


class CgroupV2(Cgroup):
    """A sandbox's cgroup of v2; see `Cgroup`."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, (folder,))
        self._folder = folder

    def bound(self, bounds: Bounds) -> None:
        """Sets memory, no swap, one fate for all, and the number of tasks; see `Cgroup.bound`."""
        write(f"{self._folder}/memory.max", bounds.memory_bytes)
        swap = self._folder / "memory.swap.max"
        if swap.exists():  # absent where the kernel does not account swap
            write(swap, 0)
        write(f"{self._folder}/memory.oom.group", 1)  # half a sandbox is none: the kernel ends all of it
        write(f"{self._folder}/pids.max", bounds.tasks)

    @property
    def can_freeze(self) -> bool:
        """Whether this kernel can (Linux 5.2)."""
        return (self._folder / "cgroup.freeze").exists()

    def freeze(self) -> None:
        """See `Cgroup.freeze`."""
        freezer.set_frozen(self._folder, True)

    def thaw(self) -> None:
        """See `Cgroup.thaw`."""
        freezer.set_frozen(self._folder, False)

    def frozen(self) -> bool:
        """See `Cgroup.frozen`."""
        return freezer.is_frozen(self._folder)

    def memory_bytes(self) -> int:
        """`memory.current`."""
        return int(read(f"{self._folder}/memory.current") or 0)

    def limit_cpus(self, cpus: float) -> None:
        """Sets `cpu.max`, of a period of 100 ms."""
        write(f"{self._folder}/cpu.max", f"{max(1000, int(cpus * CPU_PERIOD_US))} {CPU_PERIOD_US}")

    def limit_tasks(self, tasks: int) -> None:
        """Sets `pids.max`."""
        write(f"{self._folder}/pids.max", tasks)

    def _free_cpus(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            write(f"{self._folder}/cpu.max", f"max {CPU_PERIOD_US}")

    def oom_kills(self) -> int:
        """`oom_kill` of `memory.events`."""
        return field(f"{self._folder}/memory.events", "oom_kill")

    def watch_oom(self) -> OomWatch:
        """See `Cgroup.watch_oom`."""
        return EventsWatch(self._folder / "memory.events")

    def refused_tasks(self) -> int:
        """`max` of `pids.events`."""
        return field(f"{self._folder}/pids.events", "max")

    def peak_memory_bytes(self) -> int | None:
        """`memory.peak` (Linux 5.19)."""
        text = read(f"{self._folder}/memory.peak")
        return int(text) if text else None

    def cpu_time(self) -> timedelta:
        """`usage_usec` of `cpu.stat`."""
        return timedelta(microseconds=field(f"{self._folder}/cpu.stat", "usage_usec"))

    def counters(self) -> Counters | None:
        """`usage_usec` of `cpu.stat`, `memory.current` and `pids.current`."""
        cpu = read(f"{self._folder}/cpu.stat")
        memory = read(f"{self._folder}/memory.current")
        tasks = read(f"{self._folder}/pids.current")
        if not (cpu and memory and tasks):
            return None
        return Counters(timedelta(microseconds=of_lines(cpu, "usage_usec")), int(memory), int(tasks))

    def _signal_all(self, pids: Iterable[int]) -> None:
        try:
            write(f"{self._folder}/cgroup.kill", 1)
        except FileNotFoundError:  # before Linux 5.14
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class CgroupTreeV2(CgroupTree):
    """cgroup v2: one hierarchy."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._parent = root / name

    def prepare(self) -> None:
        """Makes the folder and enables the controllers for it and in it."""
        make_parent(self._parent)
        for folder in (self._root, self._parent):
            missing = set(CONTROLLERS) - set(read(folder / "cgroup.subtree_control").split())
            if not missing:
                continue
            try:
                write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)))
            except OSError as error:
                raise CgroupsUnavailableError(
                    f"Cannot enable the cgroup controllers {', '.join(sorted(missing))} in {folder}: {error.strerror}. "
                    "Run the executor as root outside a container, or give its container the host's cgroup namespace."
                ) from error

    def create(self, name: str, bounds: Bounds) -> Cgroup:
        """Makes a cgroup in our folder."""
        cgroup = CgroupV2(name, self._parent / name)
        make(cgroup, bounds)
        return cgroup

    def existing(self) -> list[Cgroup]:
        """All cgroups in our folder."""
        return [CgroupV2(name, self._parent / name) for name in children(self._parent)]

    def discard(self) -> None:
        """Removes our folder, when empty."""
        removed(self._parent)
