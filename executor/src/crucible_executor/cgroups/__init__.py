"""One cgroup per sandbox, on cgroup v1 (also hybrid) and v2: bounds, counters from outside, a kill that leaves nothing.

Only files are touched, as root. On a v2 machine all lies below `/sys/fs/cgroup/crucible`, a folder of our own, so that
no other manager's settings are changed except that the needed controllers are switched on for the root's children.
"""

from crucible_executor.cgroups.cgroup import (
    Bounds,
    Cgroup,
    CgroupsUnavailableError,
    CgroupTree,
    Counters,
    ProcessesLeftError,
)
from crucible_executor.cgroups.hierarchy import detect, of_process
from crucible_executor.cgroups.oom import OomWatch
from crucible_executor.cgroups.v1 import CgroupTreeV1
from crucible_executor.cgroups.v2 import CgroupTreeV2

__all__ = [
    "Bounds",
    "Cgroup",
    "CgroupTree",
    "CgroupTreeV1",
    "CgroupTreeV2",
    "CgroupsUnavailableError",
    "Counters",
    "OomWatch",
    "ProcessesLeftError",
    "detect",
    "of_process",
]
