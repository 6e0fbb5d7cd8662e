"""What a server answers, as frozen plain values; no protobuf message reaches a caller."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, StrEnum

from crucible_client.specs import EvaluationSpec, Limits


class State(StrEnum):
    """Where an evaluation stands. SUCCEEDED, FAILED and CANCELLED are terminal and never change."""

    UNKNOWN = "UNKNOWN"  # a newer server's state that this client does not know
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether it will never change."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Limit(StrEnum):
    """A limit that can be hit."""

    UNKNOWN = "UNKNOWN"
    WALL_TIME = "WALL_TIME"
    CPU_TIME = "CPU_TIME"
    MEMORY = "MEMORY"
    OUTPUT = "OUTPUT"
    CPUS = "CPUS"
    PROCESSES = "PROCESSES"
    OPEN_FILES = "OPEN_FILES"
    DISK = "DISK"
    DISK_INODES = "DISK_INODES"


class Isolation(StrEnum):
    """What stood between the program and the host's kernel."""

    UNKNOWN = "UNKNOWN"
    NONE = "NONE"
    CONTAINER = "CONTAINER"
    USER_KERNEL = "USER_KERNEL"


class StartKind(StrEnum):
    """Whether a run's sandbox was booted for it or had been booted ahead."""

    UNKNOWN = "UNKNOWN"
    COLD = "COLD"
    WARM = "WARM"


class EvidenceSource(StrEnum):
    """Who saw what is stated about a run."""

    UNKNOWN = "UNKNOWN"
    SANDBOX_INIT = "SANDBOX_INIT"
    EXECUTOR_CLOCK = "EXECUTOR_CLOCK"
    CGROUP = "CGROUP"
    OUTPUT_COUNT = "OUTPUT_COUNT"
    EXECUTOR = "EXECUTOR"
    STORAGE = "STORAGE"
    SANDBOX_KERNEL = "SANDBOX_KERNEL"
    HOST_FILE_SYSTEM = "HOST_FILE_SYSTEM"


class Stream(Enum):
    """One of a program's output streams."""

    STDOUT = 1
    STDERR = 2


@dataclass(frozen=True, slots=True)
class Evidence:
    """Who saw what, in words with its numbers."""

    source: EvidenceSource
    detail: str


@dataclass(frozen=True, slots=True)
class Termination:
    """How an evaluation ended: one of the subclasses.

    Attributes:
        evidence: what shows it; None when the server gave none.
    """

    evidence: Evidence | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Exited(Termination):
    """The program ended by itself with `code`, 0 to 255."""

    code: int


@dataclass(frozen=True, slots=True)
class Signalled(Termination):
    """Signal number `signal` ended the program, and no limit explains that."""

    signal: int


@dataclass(frozen=True, slots=True)
class LimitExceeded(Termination):
    """`limit` ended the program."""

    limit: Limit


@dataclass(frozen=True, slots=True)
class Cancelled(Termination):
    """A caller ended it, or what it waited for did not succeed.

    Attributes:
        by: the id of the API key that asked; empty when nobody did.
        reason: what that caller gave.
        confirmed: whether the executor saw that the sandbox is gone.
        dependency: the evaluation that had to succeed first and did not; empty when a caller asked.
    """

    by: str
    reason: str
    confirmed: bool
    dependency: str = ""


@dataclass(frozen=True, slots=True)
class InfrastructureFailure(Termination):
    """Not the program's doing; `reason` is what failed at the last attempt."""

    reason: str


@dataclass(frozen=True, slots=True)
class UnknownTermination(Termination):
    """A newer server's termination that this client does not know."""


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A limit refused the program something without ending it."""

    limit: Limit
    evidence: Evidence | None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that the infrastructure, not the program, ended."""

    attempt: int
    reason: str
    time: datetime | None


@dataclass(frozen=True, slots=True)
class OutputSummary:
    """One output stream of one attempt.

    Attributes:
        bytes_total: bytes written, kept or not; of a stream that went beyond what ends a program, those read before.
        bytes_kept: bytes kept, readable with `output`.
        truncated: whether fewer are kept than were written.
        preview: the first bytes, at most 4 KiB; empty in lists.
        sha256: of the kept bytes; empty before the end.
    """

    bytes_total: int = 0
    bytes_kept: int = 0
    truncated: bool = False
    preview: bytes = field(default=b"", repr=False)
    sha256: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used; None where the engine cannot measure it.

    Attributes:
        wall_time: from the program's start to the end of its sandbox.
        program_cpu_time: of the program and its children.
        sandbox_cpu_time: of the whole sandbox, as the host counted it.
        peak_memory_bytes: the most that the whole sandbox held at once.
        samples: how many samples were taken of it while it ran; see `Client.usage_samples`.
    """

    wall_time: timedelta | None
    program_cpu_time: timedelta | None
    sandbox_cpu_time: timedelta | None
    peak_memory_bytes: int | None
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """The executor's signed final record.

    Attributes:
        payload: the serialized record, exactly as it was signed.
        key_id: names the executor's key.
        signature: Ed25519 over `crucible.record.v1`, one zero byte, and `payload`.
    """

    payload: bytes = field(repr=False)
    key_id: str
    signature: bytes = field(repr=False)


class Observation(StrEnum):
    """How far it is known what a program tried."""

    UNKNOWN = "UNKNOWN"
    NOT_OBSERVED = "NOT_OBSERVED"
    OBSERVED = "OBSERVED"
    PARTIAL = "PARTIAL"


@dataclass(frozen=True, slots=True)
class ObservedActions:
    """All attempts of one kind; `examples` are the first different ones, escaped."""

    count: int
    first_time: datetime | None
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a program tried, from the trace of its sandbox's kernel.

    Attributes:
        observation: how far it is known; with NOT_OBSERVED every kind of action is None.
        reason: why not everything was seen.
        programs: executed after the program itself.
        files_written: opened for writing.
        probes: secrets and insides of kernels and runtimes that it tried to reach.
        sockets: created, but for local ones.
        connections: attempted.
        processes: created.
        privilege: calls that only a privileged program makes.
        dropped: messages of the trace that are missing.
    """

    observation: Observation
    reason: str
    programs: ObservedActions | None
    files_written: ObservedActions | None
    probes: ObservedActions | None
    sockets: ObservedActions | None
    connections: ObservedActions | None
    processes: ObservedActions | None
    privilege: ObservedActions | None
    dropped: int


class ActionKind(StrEnum):
    """The kinds of actions that `Behaviour` counts, each in its field of the same name."""

    UNKNOWN = "UNKNOWN"
    PROGRAMS = "PROGRAMS"
    FILES_WRITTEN = "FILES_WRITTEN"
    PROBES = "PROBES"
    SOCKETS = "SOCKETS"
    CONNECTIONS = "CONNECTIONS"
    PROCESSES = "PROCESSES"
    PRIVILEGE = "PRIVILEGE"


@dataclass(frozen=True, slots=True)
class SeenAction:
    """An action that was seen for the first time in its attempt.

    Attributes:
        kind: what.
        example: which, escaped by the server.
        count: of its kind until then, with this one.
        since_start: from the program's start.
    """

    kind: ActionKind
    example: str
    count: int
    since_start: timedelta | None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What ran the program, from the executor's signed record."""

    engine: str
    engine_version: str
    isolation: Isolation
    image_digest: str
    executor: str
    boot_id: str
    record: SignedRecord | None
    start_kind: StartKind = StartKind.UNKNOWN


@dataclass(frozen=True, slots=True)
class ArtifactSummary:
    """The files that a program left in `/workspace/out`, all together.

    Attributes:
        files: how many are listed.
        bytes_total: their bytes, kept or not.
        bytes_kept: their bytes that the executor kept.
        truncated: whether one of them was cut.
        omitted: what else was there and was not kept: files beyond the bounds, links, devices, names that are no UTF-8.
        not_collected: why there may have been more that nobody could look at; empty when not.
    """

    files: int
    bytes_total: int
    bytes_kept: int
    truncated: bool
    omitted: int
    not_collected: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a program left in `/workspace/out`.

    Attributes:
        path: below that folder, chosen by the program: never take it for a path on this machine without a check.
        bytes_total: its bytes, kept or not.
        bytes_kept: bytes that can be read, from its beginning.
        truncated: whether that is less than all.
        sha256: of the kept bytes.
    """

    path: str
    bytes_total: int
    bytes_kept: int
    truncated: bool
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Artifacts:
    """The files of an evaluation.

    Attributes:
        files: by path.
        omitted: how many others its program left that nobody kept.
        not_collected: why there may have been more that nobody could look at; empty when not.
    """

    files: tuple[Artifact, ...]
    omitted: int
    not_collected: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The record of what was asked and what happened.

    Attributes:
        name: `evaluations/{uuid}`.
        tenant: whose it is.
        creator: the id of the API key that created it.
        spec: what was asked, every default filled in; in lists without the program's contents.
        state: where it stands.
        version: rises by one with every change.
        attempt: from 1; 0 before the first.
        termination: how it ended; None until `state` is terminal.
        limit_hits: what limits refused without ending it.
        create_time: when it was stored.
        start_time: when the program of this attempt was started.
        end_time: when it became terminal.
        stdout: what the program wrote to its standard output.
        stderr: what the program wrote to its standard error.
        usage: what it used; None when nothing ran.
        provenance: what ran it; None when nothing ran.
        labels: those of `spec`.
        failed_attempts: the attempts before this one.
        behaviour: what the program tried; None until its end, and when nothing ran.
        unobserved_limits: of these nobody can say whether they refused something; `limit_hits` says nothing of them.
        batch: the batch of which it is an item; empty when it is of none.
        artifacts: the files that the program left in `/workspace/out`; None when it left none.
    """

    name: str
    tenant: str
    creator: str
    spec: EvaluationSpec
    state: State
    version: int
    attempt: int
    termination: Termination | None
    limit_hits: tuple[LimitHit, ...]
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    stdout: OutputSummary
    stderr: OutputSummary
    usage: Usage | None
    provenance: Provenance | None
    labels: Mapping[str, str]
    failed_attempts: tuple[FailedAttempt, ...]
    behaviour: Behaviour | None = None
    unobserved_limits: tuple[Limit, ...] = ()
    batch: str = ""
    artifacts: ArtifactSummary | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the event log: one of the subclasses.

    Attributes:
        position: its place in the log; `watch(after_position=...)` goes on behind it.
        evaluation: the evaluation's name.
        time: when it was recorded.
        attempt: the attempt it belongs to; 0 before the first.
    """

    position: int
    evaluation: str
    time: datetime | None
    attempt: int


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """The evaluation is in a new state; `termination` is set when that is terminal."""

    state: State
    version: int
    termination: Termination | None


@dataclass(frozen=True, slots=True)
class OutputChunk(Event):
    """The program wrote `data` to `stream`, beginning at `offset` of this attempt."""

    stream: Stream
    offset: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AttemptFailed(Event):
    """The infrastructure ended an attempt."""

    failure: FailedAttempt


@dataclass(frozen=True, slots=True)
class CancelRequested(Event):
    """A caller asked to end the evaluation."""

    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class LimitWasHit(Event):
    """A limit refused the program something."""

    hit: LimitHit


@dataclass(frozen=True, slots=True)
class BehaviourSeen(Event):
    """What the program tries, while it runs: a kind and an example when they are seen first, within a budget.

    Attributes:
        sequence: the number of this update in its attempt, from 1 without gaps.
        observation: NOT_OBSERVED: from here on nobody sees what the program tries, and nothing more is told.
        reason: why not everything is seen.
        actions: in the order they were seen.
        exhausted: kinds of which no more is told until the end, for so many different ones were.
    """

    sequence: int
    observation: Observation
    reason: str
    actions: tuple[SeenAction, ...]
    exhausted: tuple[ActionKind, ...]


@dataclass(frozen=True, slots=True)
class UnknownEvent(Event):
    """A newer server's event that this client does not know."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What stands between program and host, as one or more executors offer it.

    Attributes:
        name: its name.
        version: what its runtime says of itself.
        isolation: what it puts between program and host.
        enforces: the limits it enforces.
        available: whether it can be used now.
        unavailable_reason: why not.
        not_observable: of `enforces`, the limits whose refusals it can never see.
        breaker_open: whether it failed again and again, and is tried by itself until it works.
    """

    name: str
    version: str
    isolation: Isolation
    enforces: tuple[Limit, ...]
    available: bool
    unavailable_reason: str
    not_observable: tuple[Limit, ...] = ()
    breaker_open: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Engines, limits and bounds of this Crucible."""

    engines: tuple[Engine, ...]
    default_engine: str
    default_limits: Limits
    ceilings: Limits
    max_message_bytes: int
    max_attempts: int


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """Whether one process answers, and why not."""

    process: str
    serving: bool
    detail: str
    last_seen_time: datetime | None
    slots: int


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How much work this tenant has: waiting, under way, and ended."""

    queued: int
    running: int
    finished: int


@dataclass(frozen=True, slots=True)
class PlatformStatus:
    """How this Crucible is; `queue` is None when storage does not answer."""

    processes: tuple[ProcessStatus, ...]
    queue: QueueStatus | None


@dataclass(frozen=True, slots=True)
class Runtime:
    """How programs of one language are started; `unavailable_reason` is empty when they can be."""

    name: str
    image: str
    image_digest: str
    command: tuple[str, ...]
    unavailable_reason: str = ""


class Role(StrEnum):
    """What an API key may do."""

    UNKNOWN = "UNKNOWN"
    USER = "USER"
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret; `revoke_time` is None while it is good."""

    id: str
    tenant: str
    role: Role
    description: str
    create_time: datetime | None
    revoke_time: datetime | None


@dataclass(frozen=True, slots=True)
class DeletedEvaluation:
    """What is left of a deleted evaluation.

    Attributes:
        name: `evaluations/{uuid}`.
        tenant: whose it was.
        state: how it had ended.
        delete_time: when it was deleted first.
        by: who did it: the id of an API key, or `retention`.
        reason: why.
        record_sha256: of the executor's signed final record, hex; empty when there was none.
        stdout_sha256: of the kept bytes of standard output, hex.
        stderr_sha256: of standard error.
    """

    name: str
    tenant: str
    state: State
    delete_time: datetime | None
    by: str
    reason: str
    record_sha256: str
    stdout_sha256: str
    stderr_sha256: str


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key that was just made; its secret is never shown again."""

    api_key: ApiKey
    secret: str = field(repr=False)
