"""What limits refused a program without ending it, from whoever could see it; and what nobody could see.

What tells, found by measurement:

- processes: the host's pids cgroup counts its refusals. A kernel in user space refuses by RLIMIT_NPROC, which the host
  cannot see; its trace says so, where there is one (the error of each clone).
- disk: how full a tmpfs is when the program has ended. Of a tmpfs of the host's kernel the host is asked, of one inside
  a user-space kernel only the sandbox's init can be. What was removed again before the end is not seen.
- open files: a refusal is an answer to one system call and is counted nowhere, on no kernel.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping

from crucible_executor.behaviour import Behaviour, Observation
from crucible_executor.init_protocol import Report
from crucible_executor.model import REFUSING, Limit, LimitHit, Limits, Source

DISKS = ("/workspace", "/tmp")  # noqa: S108  # the sandbox's own


def by_init(report: Report | None, limits: Limits) -> Iterator[LimitHit]:
    """The full disks that the sandbox's init told of in its last report."""
    if report is None:
        return
    bytes_full = (report.workspace_full, report.tmp_full)
    inodes_full = (report.workspace_inodes_full, report.tmp_inodes_full)
    for folder, full, no_inode in zip(DISKS, bytes_full, inodes_full, strict=True):
        yield from _disk(folder, full, no_inode, limits, Source.SANDBOX_INIT)


def by_file_systems(states: Mapping[str, os.statvfs_result], limits: Limits) -> Iterator[LimitHit]:
    """The full disks among `states`, by folder, as the host's kernel tells."""
    for folder, state in states.items():
        yield from _disk(folder, not state.f_bfree, not state.f_ffree, limits, Source.HOST_FILE_SYSTEM)


def _disk(folder: str, full: bool, no_inode: bool, limits: Limits, source: Source) -> Iterator[LimitHit]:
    if full:
        yield LimitHit(Limit.DISK, source, f"{folder} was full when the program ended")
    if no_inode and limits.disk_inodes is not None:
        yield LimitHit(Limit.DISK_INODES, source, f"{folder} had no free inode when the program ended")


def by_cgroup(refused_tasks: int) -> Iterator[LimitHit]:
    """What the host's pids cgroup refused."""
    if refused_tasks:
        yield LimitHit(Limit.PROCESSES, Source.PIDS_CGROUP, f"{refused_tasks} process(es) or thread(s) refused")


def by_trace(behaviour: Behaviour) -> Iterator[LimitHit]:
    """What the sandbox's own kernel refused, as its trace tells."""
    refused = behaviour.refused_processes
    if refused:
        yield LimitHit(Limit.PROCESSES, Source.SANDBOX_KERNEL, f"{refused} process(es) or thread(s) refused")


def trace_is_whole(behaviour: Behaviour) -> bool:
    """Whether a refusal that the trace does not name did not happen."""
    return behaviour.observation is Observation.OBSERVED


def unobserved(enforces: Collection[Limit], limits: Limits, seen: Collection[Limit]) -> frozenset[Limit]:
    """The limits in force that refuse something, but for those of `seen`: nobody can say whether they did."""
    in_force = REFUSING.intersection(enforces)
    if limits.disk_inodes is None:
        in_force -= {Limit.DISK_INODES}
    return in_force.difference(seen)
