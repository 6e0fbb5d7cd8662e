"""What the host counts of processes and cgroups."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from crucible_deploy.layout import PROCESSES
from crucible_deploy.private_stack import PrivateStack

READER = "trace reader"
"""The executor's child that reads traces, named beside the processes."""

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20


def of_stack(stack: PrivateStack) -> dict[str, int]:
    """The ids of a stack's processes by name, with the executor's reader of traces when it runs."""
    found = {process: stack.pid(process) for process in PROCESSES}
    reader = next((pid for pid in children(found["executor"]) if b"tracing.reader" in command(pid)), None)
    return found if reader is None else found | {READER: reader}


def children(parent: int) -> list[int]:
    """The processes that a process has started, as far as they are still its children."""
    return [pid for pid in _pids() if _stat(pid)[1:2] == [str(parent)]]


def command(pid: int) -> bytes:
    """Its arguments; empty when it is gone."""
    return _read(Path(f"/proc/{pid}/cmdline"))


def cpu_ms(pid: int) -> float:
    """CPU time of a process itself, without its children, in milliseconds."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) * _TICK_MS if fields else 0.0


def resident_mib(pid: int) -> float:
    """Resident memory of one process, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / _MIB


def pss_mib(pids: Iterable[int]) -> float:
    """Memory of processes together, what is shared divided by those who share it, in MiB."""
    total = 0
    for pid in pids:
        for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
            if line.startswith(b"Pss:"):
                total += int(line.split()[1])
    return total / 1024


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def members(cgroup: Path) -> list[int]:
    """The processes of a cgroup."""
    return [int(line) for line in _read(cgroup / "cgroup.procs").split()]


def cgroup_cpu_s(cgroups: Iterable[Path]) -> float:
    """CPU time of one sandbox, whose cgroups these are: `cpuacct.usage` of v1, else `cpu.stat` of v2.

    More than one hierarchy may count the same processes.
    """
    folders = list(cgroups)
    for cgroup in folders:
        if usage := _read(cgroup / "cpuacct.usage"):
            return int(usage) / 1e9
    for cgroup in folders:
        for line in _read(cgroup / "cpu.stat").splitlines():
            if line.startswith(b"usage_usec"):
                return int(line.split()[1]) / 1e6
    return 0.0


def _pids() -> Iterable[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` behind the command's name; empty when it is gone."""
    return _read(Path(f"/proc/{pid}/stat")).decode(errors="replace").rpartition(")")[2].split()


def _read(file: Path) -> bytes:
    with suppress(OSError):  # gone meanwhile, or another kind of hierarchy
        return file.read_bytes()
    return b""
