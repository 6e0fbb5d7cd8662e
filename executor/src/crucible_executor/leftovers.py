"""Finds and removes what an earlier executor left on the host: processes, cgroups, mounts, folders.

A sandbox is known by its id in three places: its folder, its cgroup, and the `--root=` in the argv of its runsc. Any
one of them is enough to find it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path

from crucible_executor.cgroups import Cgroup, CgroupTree, ProcessesLeftError

_KEPT = frozenset({"empty"})
_MNT_DETACH = 2
_LIMIT = timedelta(seconds=10)


async def sweep(run_dir: Path, cgroups: CgroupTree, alive: set[str]) -> int:
    """Removes every sandbox below `run_dir` and in `cgroups` whose id is not in `alive`; returns how many there were.

    Raises:
        ProcessesLeftError: a process survives SIGKILL.
    """
    by_name: dict[str, Cgroup] = {group.name: group for group in cgroups.existing()}
    processes = _processes(run_dir)
    names = (set(by_name) | set(processes) | set(_folders(run_dir))) - alive - _KEPT
    for name in sorted(names):
        group = by_name.get(name)
        if group is not None:
            await group.kill()  # first: it ends frozen ones too, which a signal alone does not
        await _end(processes.get(name, []))
        if group is not None:
            await group.kill()
            await group.kill()  # what joined it in between
            await group.remove()
        _unmount_below(run_dir / name)
        shutil.rmtree(run_dir / name, ignore_errors=True)
    return len(names)


async def sweep_folders(run_dir: Path, alive: set[str]) -> int:
    """The same for sandboxes that are only a folder: ends every process that works in it, and removes it."""
    names = sorted(set(_folders(run_dir)) - alive)
    for name in names:
        deadline = time.monotonic() + _LIMIT.total_seconds()
        while pids := _working_in(str(run_dir / name)):  # again: one of them may have forked meanwhile
            if time.monotonic() > deadline:
                raise ProcessesLeftError(f"Processes {pids} keep appearing in {run_dir / name}.")
            await _end(pids)
        shutil.rmtree(run_dir / name, ignore_errors=True)
    return len(names)


def _working_in(folder: str) -> list[int]:
    return [pid for pid in _all_pids() if (at := _working_folder(pid)) == folder or at.startswith(f"{folder}/")]


def _working_folder(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink()).removesuffix(" (deleted)")
    except OSError:  # gone meanwhile, or another user's
        return ""


def _all_pids() -> list[int]:
    own = os.getpid()
    return [pid for entry in os.scandir("/proc") if entry.name.isdigit() and (pid := int(entry.name)) != own]


def _folders(run_dir: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(run_dir)]
    except FileNotFoundError:
        return []


def _processes(run_dir: Path) -> dict[str, list[int]]:
    """The processes with a `--root=` below `run_dir`, by sandbox."""
    prefix = f"--root={run_dir}/".encode()
    found: dict[str, list[int]] = {}
    for pid in _all_pids():
        for argument in _argv(pid):
            if argument.startswith(prefix):
                found.setdefault(os.fsdecode(argument[len(prefix) :]), []).append(pid)
                break
    return found


def _argv(pid: int) -> list[bytes]:
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # gone meanwhile
        return []
    return argv.split(b"\0") if argv else []


async def _end(pids: list[int]) -> None:
    """Kills processes that are not our children, and waits until they are gone."""
    handles = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    try:
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        deadline = time.monotonic() + _LIMIT.total_seconds()
        while any(_argv(pid) for pid in pids):  # a zombie has no argv
            if time.monotonic() > deadline:
                raise ProcessesLeftError(f"Processes {pids} of an earlier executor survive SIGKILL.")
            await asyncio.sleep(0.005)
    finally:
        for handle in handles:
            os.close(handle)


def _unmount_below(folder: Path) -> None:
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4].encode().decode("unicode_escape")
        if point == str(folder) or point.startswith(f"{folder}/"):
            points.append(point)
    libc = ctypes.CDLL(None, use_errno=True)
    for point in reversed(points):
        libc.umount2(os.fsencode(point), _MNT_DETACH)
