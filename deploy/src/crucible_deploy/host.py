"""What the host shows of a stack's sandboxes, looked up from outside: nothing inside one can lie about it."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy.layout import Layout

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Traces:
    """What is on the host of one stack's sandboxes; all empty when there are none.

    Attributes:
        processes: by id, with their command.
        cgroups: folders below the stack's cgroup, in every hierarchy.
        mounts: mount points below the stack's runtime folder.
        folders: of sandboxes.
    """

    processes: dict[int, str]
    cgroups: tuple[str, ...]
    mounts: tuple[str, ...]
    folders: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.processes or self.cgroups or self.mounts or self.folders)

    def __str__(self) -> str:
        found = [f"process {pid} ({command[:60]})" for pid, command in self.processes.items()]
        found += [f"cgroup {name}" for name in self.cgroups]
        found += [f"mount {name}" for name in self.mounts]
        found += [f"folder {name}" for name in self.folders]
        return ", ".join(found) or "nothing"


def traces(layout: Layout) -> Traces:
    """What there is now of this stack's sandboxes."""
    run = layout.sandboxes
    # One folder per engine, and in it one per sandbox, but for the empty one that they share.
    folders = tuple(str(path) for path in run.glob("*/*") if path.name != "empty")
    return Traces(sandbox_processes(run), tuple(_sandbox_cgroups(layout)), tuple(_mounts_below(run)), folders)


def wait_for_none(layout: Layout, seconds: float, *, spare_waiting: bool = False) -> Traces:
    """Waits until there are no traces, at most `seconds`; returns what is left.

    Args:
        layout: of the stack.
        seconds: how long at most.
        spare_waiting: do not count the executor's sandboxes that were booted ahead: frozen, with no program in them.
    """
    deadline = time.monotonic() + seconds
    while (left := _left(layout, spare_waiting)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _left(layout: Layout, spare_waiting: bool) -> Traces:
    found = traces(layout)
    if not found or not spare_waiting:
        return found
    waiting = waiting_sandboxes(layout)

    def others(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path for path in paths if waiting.isdisjoint(Path(path).parts))

    # A process names its sandbox's folder in its arguments.
    processes = {pid: text for pid, text in found.processes.items() if not any(name in text for name in waiting)}
    return Traces(processes, others(found.cgroups), others(found.mounts), others(found.folders))


def waiting_sandboxes(layout: Layout) -> set[str]:
    """The names of this stack's sandboxes that are frozen now."""
    return {Path(path).name for path in _sandbox_cgroups(layout) if _is_frozen(Path(path))}


def _is_frozen(cgroup: Path) -> bool:
    for file, text in (("cgroup.events", "frozen 1"), ("freezer.state", "FROZEN")):
        try:
            if text in (cgroup / file).read_text().splitlines():
                return True
        except OSError:  # another kind of hierarchy, or gone meanwhile
            continue
    return False


def sandbox_processes(run: Path) -> dict[int, str]:
    """Processes that name a folder below `run` in their arguments: every runsc has its own with `--root=`."""
    needle = os.fsencode(f"{run}/")
    found = {}
    for pid in _pids():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if needle in command:
            found[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def _pids() -> Iterable[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def cgroup_folders(layout: Layout) -> list[Path]:
    """The folder of this stack's cgroups in each hierarchy that has one: v2 at the root, v1 one level below."""
    return _in_each_hierarchy(layout.cgroup)


def trace_cgroup_folders(layout: Layout) -> list[Path]:
    """The same for the reader of traces: its own cgroups before the folders that hold them."""
    folders = _in_each_hierarchy(layout.trace_cgroup)
    return [*(below for own in folders for below in own.iterdir() if below.is_dir()), *folders]


def _in_each_hierarchy(name: str) -> list[Path]:
    hierarchies = (_CGROUPS, *(path for path in _CGROUPS.iterdir() if path.is_dir()))
    return [own for hierarchy in hierarchies if (own := hierarchy / name).is_dir()]


def _sandbox_cgroups(layout: Layout) -> Iterable[str]:
    for own in cgroup_folders(layout):
        yield from (str(path) for path in own.iterdir() if path.is_dir())


def _mounts_below(folder: Path) -> Iterable[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4]
        if point.startswith(f"{folder}/"):
            yield point
