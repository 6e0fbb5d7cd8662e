"""What the suite speaks of: attempts, verdicts, findings, and the controls that prove that a judge is not blind."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from datetime import timedelta

from crucible_executor.model import Exited, Limit, LimitExceeded, Limits, Termination

RAN = 97
"""The exit code of an attempt that reached its end; an interpreter that failed says something else."""

FORGED = 42
"""The exit code that attempts on the record pretend to have."""

BEGAN = b"attempt began "
"""On stderr, followed by the attempt's token, before its first try."""

LIMITS = Limits(
    wall_time=timedelta(seconds=40),
    cpu_time=None,
    cpus=1,
    memory_bytes=128 << 20,
    processes=32,
    open_files=64,
    output_bytes=64 << 10,
    disk_bytes=8 << 20,
    disk_inodes=None,
)


class Family(enum.Enum):
    """What an attempt aims at."""

    ESCAPE = "container escape"
    KERNEL = "kernel surface"
    PROC = "host /proc and /sys"
    PRIVILEGE = "privilege"
    NETWORK = "network"
    FILES = "file system"
    RESOURCES = "resources"
    PROCESSES = "signals and lingering"
    SIDE = "side information"
    EXECUTOR = "executor's interfaces"
    RECORD = "the record"


class Verdict(enum.Enum):
    """What the judges say of one attempt."""

    CONTAINED = "CONTAINED"
    VULNERABLE = "VULNERABLE"
    NOT_RUN = "NOT_RUN"


@dataclass(frozen=True)
class Control:
    """The weakness planted where an attempt runs without its sandbox: there its judge must say VULNERABLE.

    Attributes:
        bait: the bait folder is there, at the path that the attempt was told.
        capabilities: kept by the program, by number.
        victims: the suite's victim processes are in the program's PID namespace, with its user.
        listeners: the listeners are in the program's network namespace.
        setuid: new privileges are not forbidden.
        report_fd: the pipe for the end's report is left open in the program.
        report_in_victim: a process of the same user holds that pipe.
        reporter_reachable: what reports the end has the program's user, and is its parent.
        first_end: the end that is reported is that of whichever process ended first.
        lossy: the record drops NULs and escape sequences.
        merged: both outputs are one pipe.
        inherited_environment: the program has the executor's environment.
        inherited_folder: a descriptor of the bait folder is left open.
        own_names: the program has host name and domain name of its own, so that PID 1's are another's.
        writable_root: `/etc` is the bait's and writable.
        no_deadline: nobody ends the program.
        reap: whether everything is ended with the program; else what it left goes on.
        device: a device of the host is there.
        trace_fd: an open connection of a trace is left open in the program; what comes over it becomes the record.
        raw_trace: that record keeps names as they come.
        silent_trace: the record says that everything was observed, and holds nothing.
        memory_bytes, tasks: the cell's own bounds, above those that the judge allows.
        open_files: RLIMIT_NOFILE.
    """

    bait: bool = False
    capabilities: tuple[int, ...] = ()
    victims: bool = False
    listeners: bool = False
    setuid: bool = False
    report_fd: bool = False
    report_in_victim: bool = False
    reporter_reachable: bool = False
    first_end: bool = False
    lossy: bool = False
    merged: bool = False
    inherited_environment: bool = False
    inherited_folder: bool = False
    own_names: bool = False
    writable_root: bool = False
    no_deadline: bool = False
    reap: bool = True
    device: bool = False
    trace_fd: bool = False
    raw_trace: bool = False
    silent_trace: bool = False
    memory_bytes: int = 512 << 20
    tasks: int = 128
    open_files: int = 1024


@dataclass(frozen=True)
class Attempt:
    """One thing that a hostile program may try.

    Attributes:
        name: unique.
        family: what it aims at.
        breach: what would be one, in words.
        code: the program's body; see `attempts.prelude` for what it may use.
        judges: the names of the judges made for it; every other judge of `judges.ALWAYS` looks too.
        control: how its judge is proved, or None where there is no safe way, then `no_control` says why.
        ends: limits that may end it, as well as its own exit; an attempt that ended otherwise did not run.
        needs_trace: it is about the trace, and says nothing where the engine has none.
        limits: its bounds.
    """

    name: str
    family: Family
    breach: str
    code: str
    judges: tuple[str, ...]
    control: Control | None = None
    no_control: str = ""
    ends: frozenset[Limit] = frozenset()
    needs_trace: bool = False
    limits: Limits = LIMITS

    def ran(self, termination: Termination | None, stderr: bytes, token: str) -> bool:
        """Whether the program got to its end, or to the limit that it was made to meet."""
        if BEGAN + token.encode() not in stderr:
            return False
        if isinstance(termination, LimitExceeded):
            return termination.limit in self.ends
        return termination == Exited(RAN)


@dataclass(frozen=True)
class Finding:
    """The verdict on one attempt.

    Attributes:
        evidence: what the judges saw, or why it did not run.
        promised: whether the engine promises that it is CONTAINED.
        why_not: why it does not, where it does not.
    """

    attempt: Attempt
    verdict: Verdict
    evidence: str
    seconds: float
    promised: bool = False
    why_not: str = ""

    @property
    def short_of_promise(self) -> bool:
        """Whether this is less than what the engine promises."""
        return self.promised and self.verdict is not Verdict.CONTAINED


class ControlVerdict(enum.Enum):
    """What came of one control."""

    VULNERABLE = "VULNERABLE"
    BLIND = "BLIND"
    CONTROL_NOT_RUN = "CONTROL_NOT_RUN"


@dataclass(frozen=True)
class ControlFinding:
    """VULNERABLE: the judge sees the planted weakness, as it must. BLIND: it does not, so it proves nothing."""

    attempt: Attempt
    verdict: ControlVerdict
    evidence: str
    seconds: float


def bounds(**changed: object) -> Limits:
    """The suite's usual limits with some changed."""
    return dataclasses.replace(LIMITS, **changed)  # type: ignore[arg-type]
