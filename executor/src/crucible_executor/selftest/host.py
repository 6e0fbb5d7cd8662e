"""What the host shows of a sandbox: which processes belong to it, and what CPU time they used."""

from __future__ import annotations

import os
from pathlib import Path

_DOCKERS_HELPERS = (b"containerd-shim-runc-v2", b"runc")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def processes_of(sandbox: str) -> list[int]:
    """Every living process that has the sandbox's id in its cgroup, arguments or working folder."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and _belongs(pid, sandbox.encode())]


def cpu_seconds_of(pids: list[int]) -> float:
    """CPU time that processes have used so far, together; one that is gone counts nothing."""
    total = 0
    for pid in pids:
        fields = _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
        if fields:
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_SECOND


def _belongs(pid: int, name: bytes) -> bool:
    arguments = _read(f"/proc/{pid}/cmdline")
    if not arguments:  # a zombie, or a thread of the kernel
        return False
    if name in _read(f"/proc/{pid}/cgroup") or name in _working_folder(pid):
        return True
    # Docker's own helpers name a container too, and outlive it by a moment.
    program = arguments.partition(b"\0")[0].rpartition(b"/")[2]
    return name in arguments and program not in _DOCKERS_HELPERS and b"/runtime-runc/" not in arguments


def _working_folder(pid: int) -> bytes:
    try:
        return bytes(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return b""


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # gone meanwhile
        return b""
