"""Looks at the host's processes and cgroups while an attempt runs: what belongs to it, and what that holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from crucible_executor.cgroups import Cgroup
from crucible_executor.verify.namespaces import Place

LOOK_SECONDS = 0.05

MARK = "CRUCIBLE_ATTEMPT"
"""An environment variable of each attempt: a native process of the host that has it runs the program itself."""

_FORBIDDEN = re.compile(
    r"anon_inode:(bpf-|\[?(perf_event|io_uring|userfaultfd|fanotify))"
    r"|^/dev/(?!(null|zero|full|u?random|tty|ptmx|pts/.*|shm/.*)$)"
    r"|/made-(null|disk)$|^/proc/(kcore|kmsg|kallsyms)$"
)


class Watch:
    """What was seen of one attempt.

    Attributes:
        slowest: seconds; whatever was there for longer than this was there for a whole look.

    Args:
        name: part of the cgroup, arguments or working folder of everything that belongs to its sandbox.
        token: the value of its `MARK`.
        place: whose mount table is looked at.
        group: its cgroup, where it has one.
        victims: processes that must be left alone.
        of_daemon: processes of a daemon have the name in arguments and working folder too, and do not count.
    """

    def __init__(
        self, name: str, token: str, place: Place, group: Cgroup | None, victims: list[int], *, of_daemon: bool = False
    ) -> None:
        self._name = name.encode()
        self._of_daemon = of_daemon
        self._mark = f"{MARK}={token}".encode()
        self._token = token
        self._place = place
        self._group = group
        self._victims = victims
        self._states = {pid: _score(pid) for pid in victims}
        self._tasks_limit = self._knob()
        self.tasks = 0
        self.open_files = 0
        self.memory_bytes = 0
        self.cpu_seconds = 0.0
        self.cpu_at_start = 0.0 if group is None else group.cpu_time().total_seconds()
        self.objects: set[str] = set()
        self.privileges: set[str] = set()
        self.priorities: set[str] = set()
        self.mounts: set[str] = set()
        self.harm: set[str] = set()
        self.knob_changed = False
        self.slowest = 0.0
        self._since = time.monotonic()
        self._strangers: set[tuple[int, bytes]] = set()
        self._namespace = _link("/proc/self/ns/user")

    async def until(self, ended: asyncio.Future[Any]) -> None:
        """Looks again and again until `ended` is done."""
        while not ended.done():
            self.look()
            await asyncio.wait([ended], timeout=LOOK_SECONDS)

    def look(self) -> None:
        """One look at everything."""
        began = time.monotonic()
        members = list(self.members())
        tasks = 0
        for pid in members:
            stat = _stat(pid)
            if not stat:
                continue
            tasks += int(stat[17])
            if int(stat[16]) < 0 or int(stat[38]) in (1, 2):
                self.priorities.add(f"a process with nice {stat[16]} and policy {stat[38]}")
            self._look_at_descriptors(pid)
            if self._mark in _bytes(f"/proc/{pid}/environ"):
                self._look_at_privileges(pid)
        self.tasks = max(self.tasks, tasks)
        self._count()
        if self._token in self._place.mounts():
            self.mounts.add("a mount of the attempt is in the host's table")
        self._look_at_victims()
        self.slowest, self._since = max(self.slowest, time.monotonic() - self._since), began

    def _count(self) -> None:
        if self._group is not None:
            self.memory_bytes = max(self.memory_bytes, self._group.peak_memory_bytes() or 0)
            self.cpu_seconds = max(self.cpu_seconds, self._group.cpu_time().total_seconds() - self.cpu_at_start)
            counts = [_bytes(str(f / name)) for f in self._group.folders for name in ("pids.current", "pids.peak")]
            self.tasks = max(self.tasks, *(int(one or 0) for one in counts))
            self.knob_changed |= self._knob() not in (self._tasks_limit, b"")

    def _knob(self) -> bytes:
        folders = () if self._group is None else self._group.folders
        return b"".join(_bytes(str(folder / "pids.max")) for folder in folders)

    def _look_at_descriptors(self, pid: int) -> None:
        count = 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                count += 1
                target = _link(entry.path)
                if _FORBIDDEN.search(target):
                    self.objects.add(target)
        self.open_files = max(self.open_files, count)

    def _look_at_privileges(self, pid: int) -> None:
        status = _status(pid)
        if "0" in status.get("Uid", "").split():
            self.privileges.add("user 0")
        if int(status.get("CapEff", "0"), 16):
            self.privileges.add(f"capabilities {status['CapEff'].lstrip('0')}")
        if _link(f"/proc/{pid}/ns/user") not in ("", self._namespace):
            self.privileges.add("a user namespace of its own")

    def _look_at_victims(self) -> None:
        for pid in self._victims:
            status = _status(pid)
            state = status.get("State", "Z")[0]
            if state in "ZX":
                self.harm.add("a process of the host was killed")
                continue
            if state in "Tt":
                self.harm.add("a process of the host was stopped")
            # A signal is there as soon as it was sent; what it does has to wait for a processor.
            if any(int(status.get(key, "0"), 16) for key in ("SigPnd", "ShdPnd")):
                self.harm.add("a process of the host got a signal")
            if status.get("TracerPid") != "0":
                self.harm.add("a process of the host was traced")
            if _score(pid) != self._states[pid]:
                self.harm.add("a process of the host has another OOM score")

    def members(self) -> Iterator[int]:
        """Every living process on the host that belongs to the attempt."""
        own = os.getpid()
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and (pid := int(entry.name)) != own and pid not in self._victims:
                key = (pid, _bytes(f"/proc/{pid}/cmdline"))
                if not key[1] or key in self._strangers:
                    continue
                if self._belongs(pid, key[1]):
                    yield pid
                else:
                    self._strangers.add(key)

    def alive(self, apart: Iterable[int] = ()) -> int:
        """How many processes there are of it now, those in `apart` left out.

        The cgroup's own list counts beside the look through /proc: who forks and ends all the time has always gone when
        a look comes to where it was, but the kernel, which puts a child into the list before its parent leaves it,
        never finds the list empty.
        """
        listed = set() if self._group is None else set(self._group.pids())
        return len((listed | set(self.members())) - set(apart))

    def _belongs(self, pid: int, arguments: bytes) -> bool:
        return (
            self._name in _bytes(f"/proc/{pid}/cgroup")
            or (not self._of_daemon and self._name in arguments + _link(f"/proc/{pid}/cwd").encode())
            or self._mark in _bytes(f"/proc/{pid}/environ")
        )


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # gone meanwhile
        return b""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: 0 state, 16 nice, 17 threads, 38 policy."""
    return _bytes(f"/proc/{pid}/stat").decode(errors="replace").rpartition(") ")[2].split()


def _status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; empty when it has gone."""
    lines = _bytes(f"/proc/{pid}/status").decode(errors="replace").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _score(pid: int) -> bytes:
    return _bytes(f"/proc/{pid}/oom_score_adj")
