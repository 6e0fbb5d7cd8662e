"""What the executor's domain speaks of: programs, limits, how a run ended, and what it used. No gRPC, no protobuf."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import timedelta

from crucible_executor.behaviour import Behaviour


class Isolation(enum.Enum):
    """What stands between a program and the host's kernel."""

    NONE = "NONE"
    CONTAINER = "CONTAINER"
    USER_KERNEL = "USER_KERNEL"


class Stream(enum.Enum):
    """The two output streams of a program, kept apart."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Limit(enum.Enum):
    """What can be bounded. The first four end a program; the rest only refuse it something."""

    WALL_TIME = "WALL_TIME"
    CPU_TIME = "CPU_TIME"
    MEMORY = "MEMORY"
    OUTPUT = "OUTPUT"
    CPUS = "CPUS"
    PROCESSES = "PROCESSES"
    OPEN_FILES = "OPEN_FILES"
    DISK = "DISK"
    DISK_INODES = "DISK_INODES"


@dataclass(frozen=True)
class Limits:
    """The bounds of one run, all set: defaults were filled in before it got here.

    `output_bytes` is what is kept of each stream; the program is ended at `OUTPUT_KILL_FACTOR` times that.
    `artifact_bytes` is what is kept of the files that it leaves in `/workspace/out`, together; 0: nobody looks there.
    """

    wall_time: timedelta
    cpu_time: timedelta | None
    cpus: float
    memory_bytes: int
    processes: int
    open_files: int
    output_bytes: int
    disk_bytes: int
    disk_inodes: int | None
    artifact_bytes: int = 0


OUTPUT_KILL_FACTOR = 16


@dataclass(frozen=True)
class File:
    """A file put into `/workspace` before the program starts; `path` is relative, without `..`."""

    path: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Program:
    """What to run. `command` is the whole argv inside the sandbox; `env` is complete and never logged."""

    command: tuple[str, ...]
    files: tuple[File, ...]
    env: dict[str, str] = field(repr=False)
    stdin: bytes = field(repr=False)


@dataclass(frozen=True)
class Interpreter:
    """One that a sandbox booted ahead starts before its program is there; see `ahead.interpreter`.

    Attributes:
        command: its whole argv; the program's must be the same.
        env: its environment; likewise.
        file: the program's file that it is told to run, directly in `/workspace`.
        processes: of the program, as the init shall set it.
        open_files: likewise.
    """

    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    file: str
    processes: int
    open_files: int


@dataclass(frozen=True)
class SandboxClass:
    """What a sandbox is made for.

    Attributes:
        image_digest: names a root file system of the image store.
        memory_bytes: of the whole sandbox.
        disk_bytes: of each of its writable folders.
        disk_inodes: likewise; None: without a limit of their own.
        cpus: how many it may use.
        processes: of its program.
        interpreter: what may wait for the program in a sandbox booted ahead; None: nothing but the init.
    """

    image_digest: str
    memory_bytes: int
    disk_bytes: int
    disk_inodes: int | None
    cpus: float
    processes: int
    interpreter: Interpreter | None = None


class StartKind(enum.Enum):
    """Whether a run's sandbox was booted for it or had been booted ahead. It changes nothing but the time."""

    COLD = "COLD"
    WARM = "WARM"


@dataclass(frozen=True)
class Exited:
    """The program ended by itself; `code` is what the sandbox's init said."""

    code: int


@dataclass(frozen=True)
class Signalled:
    """A signal ended the program and no limit explains it; `signal` is what the sandbox's init said."""

    signal: int


@dataclass(frozen=True)
class LimitExceeded:
    """A limit ended the program. `evidence` says what outside the sandbox showed it, with its numbers."""

    limit: Limit
    evidence: str


@dataclass(frozen=True)
class Killed:
    """Somebody called `Sandbox.kill` before the program ended, and the sandbox is gone."""


@dataclass(frozen=True)
class SandboxFailed:
    """The sandbox, not the program, failed: it did not start, or died without saying how the program ended."""

    reason: str


Termination = Exited | Signalled | LimitExceeded | Killed | SandboxFailed


REFUSING = frozenset({Limit.PROCESSES, Limit.OPEN_FILES, Limit.DISK, Limit.DISK_INODES})
"""The limits that refuse a program something and let it go on."""


class Source(enum.Enum):
    """Who saw that a limit refused something; the first two are the host's own word."""

    PIDS_CGROUP = "host pids cgroup"
    HOST_FILE_SYSTEM = "host's file system"
    SANDBOX_KERNEL = "trace of the sandbox's kernel"
    SANDBOX_INIT = "sandbox init"


@dataclass(frozen=True)
class LimitHit:
    """A limit that refused the program something without ending it."""

    limit: Limit
    source: Source
    detail: str


@dataclass(frozen=True)
class Usage:
    """What a run used, and how many `Sample`s were taken of it. None where this engine cannot measure it."""

    wall_time: timedelta
    program_cpu: timedelta | None
    sandbox_cpu: timedelta | None
    peak_memory_bytes: int | None
    samples: int | None = None


@dataclass(frozen=True)
class Artifact:
    """A file that a program left: its first `bytes_kept` bytes begin at `offset` of the run's spool.

    Attributes:
        path: below `/workspace/out`; any character but NUL, for the program chose it.
        bytes_total: of the file, as the sandbox says.
        bytes_kept: see above.
        sha256: of the kept bytes.
        offset: see above.
    """

    path: str
    bytes_total: int
    bytes_kept: int
    sha256: bytes
    offset: int


@dataclass(frozen=True)
class Artifacts:
    """What a program left in `/workspace/out`.

    Attributes:
        files: sorted by the bytes of their paths, each path once.
        omitted: how much else was there that is not listed, folders not counted.
        not_collected: why nobody looked there, or not at everything; empty when all is listed or counted.
    """

    files: tuple[Artifact, ...] = ()
    omitted: int = 0
    not_collected: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one run ended, after the sandbox's processes are gone.

    Attributes:
        termination: what ended it.
        limit_hits: what limits refused it.
        usage: what it used.
        behaviour: what it tried; None where the engine has no trace.
        unobserved: of `REFUSING`, the limits in force of which nobody can say whether they refused something.
        artifacts: what it left.
    """

    termination: Termination
    limit_hits: tuple[LimitHit, ...]
    usage: Usage
    behaviour: Behaviour | None = None
    unobserved: frozenset[Limit] = frozenset()
    artifacts: Artifacts = Artifacts()
