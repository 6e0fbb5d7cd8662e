"""What one sandbox's cgroup can do, whichever version the machine has, and a tree of them."""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from crucible_executor.cgroups.files import read, removed
from crucible_executor.cgroups.oom import OomWatch

CPU_PERIOD_US = 100_000

_FIRST_LOOK_S = 0.001
_LONGEST_PAUSE_S = 0.02


class CgroupsUnavailableError(Exception):
    """This machine's cgroups cannot be used; the message says why and what to do."""


class ProcessesLeftError(Exception):
    """Processes of a cgroup survived SIGKILL for longer than the limit: the host is in trouble."""


@dataclass(frozen=True)
class Bounds:
    """What a cgroup enforces from its first process on. `memory_bytes` counts everything in it, without swap."""

    memory_bytes: int
    tasks: int


@dataclass(frozen=True)
class Counters:
    """What the host's kernel says of a cgroup at one moment.

    Attributes:
        cpu_time: user and system time of everything that ever ran in it.
        memory_bytes: what is charged to it now.
        tasks: processes and threads in it now.
    """

    cpu_time: timedelta
    memory_bytes: int
    tasks: int


class Cgroup(abc.ABC):
    """The cgroup of one sandbox. Counters read 0 or None once it is removed."""

    def __init__(self, name: str, folders: tuple[Path, ...]) -> None:
        self.name = name
        self.folders = folders
        self._procs = tuple(f"{folder}/cgroup.procs" for folder in folders)

    @property
    def exists(self) -> bool:
        """Whether it is still there, so that its counters say something."""
        return all(folder.exists() for folder in self.folders)

    @property
    def procs_files(self) -> tuple[Path, ...]:
        """The files that a process writes `0` to, each, in order to join."""
        return tuple(folder / "cgroup.procs" for folder in self.folders)

    @abc.abstractmethod
    def limit_cpus(self, cpus: float) -> None:
        """Bounds the CPU time per time to that of `cpus` processors, from now on."""

    @abc.abstractmethod
    def limit_tasks(self, tasks: int) -> None:
        """Bounds processes and threads together, from now on."""

    @abc.abstractmethod
    def bound(self, bounds: Bounds) -> None:
        """Sets what it enforces, also anew while processes are in it.

        Raises:
            OSError: the kernel refused; EBUSY where more memory is in use than `bounds` allow.
        """

    @property
    @abc.abstractmethod
    def can_freeze(self) -> bool:
        """Whether this machine can stop all processes here and let them go on."""

    @abc.abstractmethod
    def freeze(self) -> None:
        """Asks that everything here stops, what joins later too; the kernel needs a moment. `kill` ends this state."""

    @abc.abstractmethod
    def thaw(self) -> None:
        """Lets everything here go on. Idempotent; nothing when the cgroup is gone."""

    @abc.abstractmethod
    def frozen(self) -> bool:
        """Whether everything here has stopped."""

    @abc.abstractmethod
    def memory_bytes(self) -> int:
        """What is charged now."""

    @abc.abstractmethod
    def _free_cpus(self) -> None:
        """Takes the bound on CPU time away; nothing when the cgroup is gone."""

    @abc.abstractmethod
    def oom_kills(self) -> int:
        """How many processes the kernel killed here because the memory limit was reached."""

    @abc.abstractmethod
    def watch_oom(self) -> OomWatch:
        """Remembers `oom_kills` for when somebody else has removed it; close the watch in the end.

        Raises:
            OSError: the kernel refused.
        """

    @abc.abstractmethod
    def refused_tasks(self) -> int:
        """How often a process or thread was refused because of `Bounds.tasks`."""

    @abc.abstractmethod
    def peak_memory_bytes(self) -> int | None:
        """The most memory ever charged; None where the kernel does not tell (v2 before 5.19)."""

    @abc.abstractmethod
    def cpu_time(self) -> timedelta:
        """User and system CPU time of everything that ever ran here."""

    @abc.abstractmethod
    def counters(self) -> Counters | None:
        """What it uses now; None when the kernel does not say, or it is gone."""

    @abc.abstractmethod
    def _signal_all(self, pids: Iterable[int]) -> None:
        """Sends SIGKILL to these processes of it, or to everything here, once."""

    def pids(self) -> list[int]:
        """The processes in it now."""
        found: set[int] = set()
        for file in self._procs:
            found.update(map(int, read(file).split()))
        return sorted(found)

    def _some_pids(self) -> list[int]:
        """Those of the first of its folders that still has any; none is left only when this is empty."""
        for file in self._procs:
            if found := read(file):
                return list(map(int, found.split()))
        return []

    async def kill(self, limit: timedelta = timedelta(seconds=10)) -> None:
        """Ends every process in it, and returns when none is left. Its bound on CPU time ends with it.

        Raises:
            ProcessesLeftError: some are still there after `limit`.
        """
        began = time.monotonic()
        left = self.pids()
        if left:
            # Dying takes CPU time too (memory is freed): at a hundredth of a CPU a large sandbox would need minutes.
            self._free_cpus()
        while left:
            self._signal_all(left)
            self.thaw()  # after the signal, so that none of it runs again; frozen processes of v1 do not die
            passed = time.monotonic() - began
            if passed > limit.total_seconds():
                raise ProcessesLeftError(f"Processes {self.pids()} of sandbox {self.name} survive SIGKILL.")
            # A sandbox usually needs a few milliseconds to fall apart, and every run waits for it.
            await asyncio.sleep(min(max(_FIRST_LOOK_S, passed / 2), _LONGEST_PAUSE_S))
            left = self._some_pids()

    async def remove(self, limit: timedelta = timedelta(seconds=5)) -> None:
        """Removes it. The kernel may need a moment after the last process has gone. Idempotent.

        Raises:
            ProcessesLeftError: it is still in use after `limit`.
        """
        began = time.monotonic()
        remaining = list(self.folders)
        while remaining := [folder for folder in remaining if not removed(folder)]:
            passed = time.monotonic() - began
            if passed > limit.total_seconds():
                raise ProcessesLeftError(f"The cgroup {remaining[0]} is still in use: {self.pids()}.")
            await asyncio.sleep(min(max(_FIRST_LOOK_S, passed / 2), _LONGEST_PAUSE_S))


class CgroupTree(abc.ABC):
    """Our own part of the machine's cgroups: a folder with one cgroup per sandbox.

    Two executors on one machine take different `name`s.
    """

    @abc.abstractmethod
    def prepare(self) -> None:
        """Makes the folder and switches the controllers on.

        Raises:
            CgroupsUnavailableError: not root, a controller is missing, or the mount is read-only.
        """

    @abc.abstractmethod
    def create(self, name: str, bounds: Bounds) -> Cgroup:
        """Makes a cgroup with its bounds set.

        Raises:
            CgroupsUnavailableError: the kernel refused.
        """

    @abc.abstractmethod
    def existing(self) -> list[Cgroup]:
        """All cgroups there, also those of an earlier process."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Removes the folder itself, when nothing is in it any more. Idempotent."""


def make_parent(folder: Path) -> None:
    """Makes a folder that holds sandboxes' cgroups.

    Raises:
        CgroupsUnavailableError: the kernel refused.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise CgroupsUnavailableError(
            f"Cannot make the cgroup {folder}: {error.strerror}. Run the executor as root with a writable cgroup mount."
        ) from error


def make(cgroup: Cgroup, bounds: Bounds) -> None:
    """Makes the folders of a new cgroup and sets its bounds.

    Raises:
        CgroupsUnavailableError: the kernel refused; nothing is left.
    """
    made: list[Path] = []
    try:
        for folder in cgroup.folders:
            folder.mkdir()
            made.append(folder)
        cgroup.bound(bounds)
    except OSError as error:
        for folder in made:
            removed(folder)
        raise CgroupsUnavailableError(f"Cannot make the cgroup {cgroup.name}: {error}.") from error
