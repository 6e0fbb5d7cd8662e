"""One cgroup per sandbox, on cgroup v1 (also hybrid) and v2: bounds, counters from outside, a kill that leaves nothing.

Only files are touched, as root. On a v2 machine all lies below `/sys/fs/cgroup/crucible`, a folder of our own, so that
no other manager's settings are changed except that the needed controllers are switched on for the root's children.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

_CPU_PERIOD_US = 100_000
_V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
_V1_FREEZER = "freezer"
"""Of v1, or on a hybrid machine the v2 hierarchy, where frozen processes can be killed; where there is none, nothing is
frozen, and only a pool of waiting sandboxes is missed."""
_V2_FREEZER_SINCE = (5, 2)
_V2_CONTROLLERS = ("memory", "cpu", "pids")


class CgroupsUnavailableError(Exception):
    """This machine's cgroups cannot be used; the message says why and what to do."""


class ProcessesLeftError(Exception):
    """Processes of a cgroup survived SIGKILL for longer than the limit: the host is in trouble."""


@dataclass(frozen=True)
class Bounds:
    """What a cgroup enforces from its first process on. `memory_bytes` counts everything in it, without swap."""

    memory_bytes: int
    tasks: int


class Cgroup(abc.ABC):
    """The cgroup of one sandbox. Counters read 0 or None once it is removed."""

    def __init__(self, name: str, folders: tuple[Path, ...]) -> None:
        self.name = name
        self.folders = folders

    @property
    def procs_files(self) -> tuple[Path, ...]:
        """The files that a process writes `0` to, each, in order to join."""
        return tuple(folder / "cgroup.procs" for folder in self.folders)

    @abc.abstractmethod
    def limit_cpus(self, cpus: float) -> None:
        """Bounds the CPU time per time to that of `cpus` processors, from now on."""

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
    def refused_tasks(self) -> int:
        """How often a process or thread was refused because of `Bounds.tasks`."""

    @abc.abstractmethod
    def peak_memory_bytes(self) -> int | None:
        """The most memory ever charged; None where the kernel does not tell (v2 before 5.19)."""

    @abc.abstractmethod
    def cpu_time(self) -> timedelta:
        """User and system CPU time of everything that ever ran here."""

    @abc.abstractmethod
    def _signal_all(self) -> None:
        """Sends SIGKILL to everything here, once."""

    def pids(self) -> list[int]:
        """The processes in it now."""
        found: set[int] = set()
        for folder in self.folders:
            found.update(map(int, _read(folder / "cgroup.procs").split()))
        return sorted(found)

    async def kill(self, limit: timedelta = timedelta(seconds=10)) -> None:
        """Ends every process in it, and returns when none is left. Its bound on CPU time ends with it.

        Raises:
            ProcessesLeftError: some are still there after `limit`.
        """
        began = time.monotonic()
        while self.pids():
            # Dying takes CPU time too (memory is freed): at a hundredth of a CPU a large sandbox would need minutes.
            self._free_cpus()
            self._signal_all()
            self.thaw()  # after the signal, so that none of it runs again; frozen processes of v1 do not die
            passed = time.monotonic() - began
            if passed > limit.total_seconds():
                raise ProcessesLeftError(f"Processes {self.pids()} of sandbox {self.name} survive SIGKILL.")
            # A sandbox usually needs a few milliseconds to fall apart, and every run waits for it.
            await asyncio.sleep(0.0005 if passed < 0.02 else 0.02)

    async def remove(self, limit: timedelta = timedelta(seconds=5)) -> None:
        """Removes it. The kernel may need a moment after the last process has gone. Idempotent.

        Raises:
            ProcessesLeftError: it is still in use after `limit`.
        """
        began = time.monotonic()
        remaining = list(self.folders)
        while remaining := [folder for folder in remaining if not _removed(folder)]:
            passed = time.monotonic() - began
            if passed > limit.total_seconds():
                raise ProcessesLeftError(f"The cgroup {remaining[0]} is still in use: {self.pids()}.")
            await asyncio.sleep(0.0005 if passed < 0.02 else 0.02)


class _CgroupV1(Cgroup):
    def __init__(self, name: str, folders: dict[str, Path]) -> None:
        super().__init__(name, tuple(dict.fromkeys(folders.values())))
        self._memory = folders["memory"]
        self._cpu = folders["cpu"]
        self._cpuacct = folders["cpuacct"]
        self._tasks = folders["pids"]
        self._freezer = folders.get(_V1_FREEZER)

    def bound(self, bounds: Bounds) -> None:
        limits = [self._memory / "memory.limit_in_bytes"]
        with_swap = self._memory / "memory.memsw.limit_in_bytes"
        if with_swap.exists():  # absent where the kernel does not account swap
            limits.append(with_swap)
            if int(_read(with_swap) or 0) < bounds.memory_bytes:
                limits.reverse()  # the limit with swap is never below the one without
        for limit in limits:
            _write(limit, bounds.memory_bytes)
        _write(self._memory / "memory.swappiness", 0)
        _write(self._tasks / "pids.max", bounds.tasks)

    @property
    def can_freeze(self) -> bool:
        return self._freezer is not None

    def freeze(self) -> None:
        if self._freezer is None:
            raise OSError("this machine mounts no freezer controller")
        _set_frozen(self._freezer, True)

    def thaw(self) -> None:
        if self._freezer is not None:
            _set_frozen(self._freezer, False)

    def frozen(self) -> bool:
        return self._freezer is not None and _is_frozen(self._freezer)

    def memory_bytes(self) -> int:
        return int(_read(self._memory / "memory.usage_in_bytes") or 0)

    def limit_cpus(self, cpus: float) -> None:
        _write(self._cpu / "cpu.cfs_quota_us", max(1000, int(cpus * _CPU_PERIOD_US)))

    def _free_cpus(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            _write(self._cpu / "cpu.cfs_quota_us", -1)

    def oom_kills(self) -> int:
        return _field(self._memory / "memory.oom_control", "oom_kill")

    def refused_tasks(self) -> int:
        return _field(self._tasks / "pids.events", "max")

    def peak_memory_bytes(self) -> int | None:
        text = _read(self._memory / "memory.max_usage_in_bytes")
        return int(text) if text else None

    def cpu_time(self) -> timedelta:
        return timedelta(microseconds=int(_read(self._cpuacct / "cpuacct.usage") or 0) // 1000)

    def _signal_all(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class _CgroupV2(Cgroup):
    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, (folder,))
        self._folder = folder

    def bound(self, bounds: Bounds) -> None:
        _write(self._folder / "memory.max", bounds.memory_bytes)
        swap = self._folder / "memory.swap.max"
        if swap.exists():  # absent where the kernel does not account swap
            _write(swap, 0)
        _write(self._folder / "memory.oom.group", 1)  # half a sandbox is none: the kernel ends all of it
        _write(self._folder / "pids.max", bounds.tasks)

    @property
    def can_freeze(self) -> bool:
        return (self._folder / "cgroup.freeze").exists()

    def freeze(self) -> None:
        _set_frozen(self._folder, True)

    def thaw(self) -> None:
        _set_frozen(self._folder, False)

    def frozen(self) -> bool:
        return _is_frozen(self._folder)

    def memory_bytes(self) -> int:
        return int(_read(self._folder / "memory.current") or 0)

    def limit_cpus(self, cpus: float) -> None:
        _write(self._folder / "cpu.max", f"{max(1000, int(cpus * _CPU_PERIOD_US))} {_CPU_PERIOD_US}")

    def _free_cpus(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            _write(self._folder / "cpu.max", f"max {_CPU_PERIOD_US}")

    def oom_kills(self) -> int:
        return _field(self._folder / "memory.events", "oom_kill")

    def refused_tasks(self) -> int:
        return _field(self._folder / "pids.events", "max")

    def peak_memory_bytes(self) -> int | None:
        text = _read(self._folder / "memory.peak")
        return int(text) if text else None

    def cpu_time(self) -> timedelta:
        return timedelta(microseconds=_field(self._folder / "cpu.stat", "usage_usec"))

    def _signal_all(self) -> None:
        try:
            _write(self._folder / "cgroup.kill", 1)
        except FileNotFoundError:  # before Linux 5.14
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


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


class CgroupTreeV1(CgroupTree):
    """cgroup v1: one hierarchy per controller; `mounts` says where each lies."""

    def __init__(self, mounts: dict[str, Path], name: str) -> None:
        used = [*_V1_CONTROLLERS, *([_V1_FREEZER] if _V1_FREEZER in mounts else [])]
        self._parents = {controller: mounts[controller] / name for controller in used}

    @property
    def folders(self) -> tuple[Path, ...]:
        """Ours in each hierarchy."""
        return tuple(dict.fromkeys(self._parents.values()))

    def prepare(self) -> None:
        """Makes the folder in every hierarchy."""
        for folder in self._parents.values():
            _make_parent(folder)

    def create(self, name: str, bounds: Bounds) -> Cgroup:
        """Makes a cgroup in every hierarchy."""
        cgroup = _CgroupV1(name, {controller: parent / name for controller, parent in self._parents.items()})
        _make(cgroup, bounds)
        return cgroup

    def existing(self) -> list[Cgroup]:
        """All cgroups in any hierarchy."""
        names = {name for parent in self._parents.values() for name in _children(parent)}
        return [
            _CgroupV1(name, {key: parent / name for key, parent in self._parents.items()}) for name in sorted(names)
        ]

    def discard(self) -> None:
        """Removes our folders, where empty."""
        for folder in self._parents.values():
            _removed(folder)


class CgroupTreeV2(CgroupTree):
    """cgroup v2: one hierarchy."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._parent = root / name

    def prepare(self) -> None:
        """Makes the folder and enables the controllers for it and in it."""
        _make_parent(self._parent)
        for folder in (self._root, self._parent):
            missing = set(_V2_CONTROLLERS) - set(_read(folder / "cgroup.subtree_control").split())
            if not missing:
                continue
            try:
                _write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)))
            except OSError as error:
                raise CgroupsUnavailableError(
                    f"Cannot enable the cgroup controllers {', '.join(sorted(missing))} in {folder}: {error.strerror}. "
                    "Run the executor as root outside a container, or give its container the host's cgroup namespace."
                ) from error

    def create(self, name: str, bounds: Bounds) -> Cgroup:
        """Makes a cgroup in our folder."""
        cgroup = _CgroupV2(name, self._parent / name)
        _make(cgroup, bounds)
        return cgroup

    def existing(self) -> list[Cgroup]:
        """All cgroups in our folder."""
        return [_CgroupV2(name, self._parent / name) for name in _children(self._parent)]

    def discard(self) -> None:
        """Removes our folder, when empty."""
        _removed(self._parent)


def detect(name: str = "crucible", mountinfo: Path = Path("/proc/self/mountinfo")) -> CgroupTree:
    """The cgroup tree of this machine: v1 where v1 has the memory controller, else v2.

    Raises:
        CgroupsUnavailableError: neither has all that is needed.
    """
    v1, v2 = _mounts(mountinfo)
    if "memory" in v1:
        missing = [controller for controller in _V1_CONTROLLERS if controller not in v1]
        if missing:
            raise CgroupsUnavailableError(
                f"The cgroup v1 controllers {', '.join(missing)} are not mounted: mount them."
            )
        if v2 is not None and _kernel() >= _V2_FREEZER_SINCE:
            v1[_V1_FREEZER] = v2
        return CgroupTreeV1(v1, name)
    if v2 is None:
        raise CgroupsUnavailableError("No cgroups are mounted: mount cgroup2 at /sys/fs/cgroup.")
    missing = [one for one in _V2_CONTROLLERS if one not in _read(v2 / "cgroup.controllers").split()]
    if missing:
        raise CgroupsUnavailableError(
            f"The cgroup v2 controllers {', '.join(missing)} are not available in {v2}: enable them in the kernel, or "
            "run the executor where they are delegated."
        )
    return CgroupTreeV2(v2, name)


def _mounts(mountinfo: Path) -> tuple[dict[str, Path], Path | None]:
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in _read(mountinfo).splitlines():
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


def _set_frozen(folder: Path, frozen: bool) -> None:
    """Of a folder of v2 or of v1's freezer; letting go what is gone is nothing."""
    of_v2 = folder / "cgroup.freeze"
    try:
        if of_v2.exists():
            _write(of_v2, int(frozen))
        else:
            _write(folder / "freezer.state", "FROZEN" if frozen else "THAWED")
    except FileNotFoundError:
        if frozen:
            raise


def _is_frozen(folder: Path) -> bool:
    return _field(folder / "cgroup.events", "frozen") == 1 or _read(folder / "freezer.state").strip() == "FROZEN"


def _make_parent(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise CgroupsUnavailableError(
            f"Cannot make the cgroup {folder}: {error.strerror}. Run the executor as root with a writable cgroup mount."
        ) from error


def _make(cgroup: _CgroupV1 | _CgroupV2, bounds: Bounds) -> None:
    made: list[Path] = []
    try:
        for folder in cgroup.folders:
            folder.mkdir()
            made.append(folder)
        cgroup.bound(bounds)
    except OSError as error:
        for folder in made:
            _removed(folder)
        raise CgroupsUnavailableError(f"Cannot make the cgroup {cgroup.name}: {error}.") from error


def _children(parent: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # busy: its last process is still on its way out
        return False
    return True


def _write(file: Path, value: int | str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _read(file: Path) -> str:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts).decode()
    except OSError:  # ENODEV: removed between open and read
        return ""
    finally:
        os.close(fd)


def _field(file: Path, key: str) -> int:
    for line in _read(file).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
