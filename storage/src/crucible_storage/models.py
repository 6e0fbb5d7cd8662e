"""The tables. Every one has `tenant`; times are microseconds since 1970 UTC, because SQLite keeps no time zone.

An evaluation's row is small and changes often; what is large or never changes (program, result, output) has tables of
its own, so that a state change rewrites no megabytes. `executor` and `setting` belong to the platform, not to a tenant:
there `tenant` is `PLATFORM`. The same tables serve SQLite and PostgreSQL.
"""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, text
from sqlmodel import Field, SQLModel

from crucible_storage import (
    artifact_tables,  # noqa: F401  # so that `metadata` has them
    batch_tables,  # noqa: F401  # as above
    columns,
)

PLATFORM = "*"
"""The tenant of rows that belong to no tenant; never the name of one."""

_WAITING = text("state = 1 AND not_before IS NULL AND blocked = 0")
_OF_BATCH = text("batch IS NOT NULL")
_DELAYED = text("state = 1 AND not_before IS NOT NULL")
_NAMED = text("request_id IS NOT NULL")
_HELD = text("state IN (2, 3)")
_ACTIVE = text("state IN (1, 2)")
_NOT_RETRIED = text("retried_as IS NULL")
_UNDER_WAY = text("state IN (2, 3) AND count > 0")
_WHOLE = text("downsampled = 0")
_NOT_PLAIN = text("weight <> 1 OR max_running > 0")


class EvaluationRow(SQLModel, table=True):
    """One evaluation: what is constant and small, and everything that changes."""

    __tablename__ = "evaluation"
    __table_args__ = (
        Index("ix_evaluation_id", "id", unique=True),
        Index("ix_evaluation_request", "tenant", "request_id", unique=True, **columns.only(_NAMED)),
        Index("ix_evaluation_list", "tenant", "state", "seq"),
        Index("ix_evaluation_waiting", "lane", "rank", "seq", **columns.only(_WAITING)),
        Index("ix_evaluation_delayed", "not_before", **columns.only(_DELAYED)),
        Index("ix_evaluation_held", "executor", **columns.only(_HELD)),
        Index("ix_evaluation_renewed", "lease_renewed", **columns.only(_HELD)),
        Index("ix_evaluation_batch", "batch", "state", "seq", **columns.only(_OF_BATCH)),
    )

    seq: int | None = Field(default=None, sa_column=columns.key())
    id: str
    tenant: str
    creator: str
    request_id: str | None
    spec_sha256: bytes = Field(sa_column=columns.blob())
    run_spec_sha256: bytes = Field(sa_column=columns.blob())
    run_spec_size: int
    runtime: str
    engine: str
    priority: int
    limits: bytes = Field(sa_column=columns.blob())
    output_limit: int = Field(sa_column=columns.number())
    labels: str
    lane: str
    rank: int = Field(sa_column=columns.number())
    create_time: int = Field(sa_column=columns.number())
    state: int
    version: int = Field(sa_column=columns.number())
    attempt: int
    epoch: int = Field(sa_column=columns.number())
    not_before: int | None = Field(sa_column=columns.number(nullable=True))
    executor: str | None
    boot_id: str | None
    lease_renewed: int | None = Field(sa_column=columns.number(nullable=True))
    lease_expiry: int | None = Field(sa_column=columns.number(nullable=True))
    lost_reason: str | None
    cancel_by: str | None
    cancel_reason: str | None
    cancel_time: int | None = Field(sa_column=columns.number(nullable=True))
    stdout_bytes: int = Field(sa_column=columns.number())
    stderr_bytes: int = Field(sa_column=columns.number())
    start_time: int | None = Field(sa_column=columns.number(nullable=True))
    end_time: int | None = Field(sa_column=columns.number(nullable=True))
    behaviour_updates: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    batch: str | None
    blocked: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))


class ProgramRow(SQLModel, table=True):
    """What to run: the `crucible.executor.v1.RunSpec`, serialized once, so that its digest holds for ever."""

    __tablename__ = "program"

    evaluation_seq: int = Field(sa_column=columns.owner())
    tenant: str
    run_spec: bytes = Field(sa_column=columns.blob())


class ResultRow(SQLModel, table=True):
    """How an evaluation ended: a `crucible.evaluation.v1.Evaluation` with only what the end added."""

    __tablename__ = "result"

    evaluation_seq: int = Field(sa_column=columns.owner())
    tenant: str
    result: bytes = Field(sa_column=columns.blob())


class LabelRow(SQLModel, table=True):
    """One label of one evaluation, for lists by label."""

    __tablename__ = "label"
    __table_args__ = (Index("ix_label_value", "tenant", "key", "value", "evaluation_seq"),)

    evaluation_seq: int = Field(sa_column=columns.owner())
    key: str = Field(primary_key=True)
    tenant: str
    value: str


class FailedAttemptRow(SQLModel, table=True):
    """An attempt that the infrastructure ended and after which another was allowed."""

    __tablename__ = "failed_attempt"

    evaluation_seq: int = Field(sa_column=columns.owner())
    attempt: int = Field(primary_key=True)
    tenant: str
    reason: str
    time: int = Field(sa_column=columns.number())


class EventRow(SQLModel, table=True):
    """One entry of the event log. `body` is a `crucible.evaluation.v1.Event` with only its `kind`; empty for output."""

    __tablename__ = "event"
    __table_args__ = (Index("ix_event_evaluation", "evaluation_seq", "position"),)

    position: int | None = Field(default=None, sa_column=Column(columns.BIG, primary_key=True, autoincrement=False))
    tenant: str
    evaluation_seq: int = Field(sa_column=Column(columns.BIG, ForeignKey("evaluation.seq"), nullable=False))
    time: int = Field(sa_column=columns.number())
    attempt: int
    body: bytes = Field(sa_column=columns.blob())


class OutputRow(SQLModel, table=True):
    """Bytes of one stream of one attempt; `position` is that of the event that tells of them.

    `data` is empty when they were moved to the artifact store: see `LargeOutputRow`.
    """

    __tablename__ = "output"
    __table_args__ = (Index("ix_output_stream", "evaluation_seq", "attempt", "stream", "offset", unique=True),)

    position: int | None = Field(default=None, sa_column=Column(columns.BIG, primary_key=True, autoincrement=False))
    tenant: str
    evaluation_seq: int = Field(sa_column=Column(columns.BIG, ForeignKey("evaluation.seq"), nullable=False))
    attempt: int
    stream: int
    offset: int = Field(sa_column=columns.number())
    size: int
    data: bytes = Field(sa_column=columns.blob())


class UsageSampleRow(SQLModel, table=True):
    """What one attempt used over time: `data` is a series as `usage_series` packs it, of so many `samples`.

    `recorded` is when the last of them came.
    """

    __tablename__ = "usage_sample"
    __table_args__ = (
        Index("ix_usage_sample_recorded", "recorded"),
        Index("ix_usage_sample_whole", "recorded", **columns.only(_WHOLE)),
    )

    evaluation_seq: int = Field(sa_column=columns.owner())
    attempt: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    tenant: str
    samples: int
    downsampled: int
    recorded: int = Field(sa_column=columns.number())
    data: bytes = Field(sa_column=columns.blob())


class LogHeadRow(SQLModel, table=True):
    """The one row that says how far the event log goes. Whoever appends changes it, and so has it locked."""

    __tablename__ = "log_head"

    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    tenant: str
    position: int = Field(sa_column=columns.number())


class CountRow(SQLModel, table=True):
    """How many evaluations of a tenant are in a state; kept in the transaction that changes the state."""

    __tablename__ = "evaluation_count"
    __table_args__ = (Index("ix_evaluation_count_running", "tenant", **columns.only(_UNDER_WAY)),)

    tenant: str = Field(primary_key=True)
    state: int = Field(primary_key=True)
    count: int = Field(sa_column=columns.number())


class TenantRow(SQLModel, table=True):
    """A tenant's quotas; 0: none. See `crucible.evaluation.v1.Quota`."""

    __tablename__ = "tenant"
    __table_args__ = (Index("ix_tenant_not_plain", "tenant", **columns.only(_NOT_PLAIN)),)

    tenant: str = Field(primary_key=True)
    weight: int = Field(default=1)
    max_priority: int = Field(default=100)
    max_running: int = Field(default=0, sa_column=columns.number())
    max_queued: int = Field(default=0, sa_column=columns.number())
    evaluations_per_day: int = Field(default=0, sa_column=columns.number())
    cpu_seconds_per_day: int = Field(default=0, sa_column=columns.number())
    max_stored_bytes: int = Field(default=0, sa_column=columns.number())
    create_time: int = Field(sa_column=columns.number())


class TenantUseRow(SQLModel, table=True):
    """What a tenant used on a day (days since 1970 UTC) or, in the row of day 0, on all days together.

    `stored_bytes` is kept in the row of day 0 alone.
    """

    __tablename__ = "tenant_use"

    tenant: str = Field(primary_key=True)
    day: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    evaluations: int = Field(sa_column=columns.number())
    cpu_micros: int = Field(sa_column=columns.number())
    stored_bytes: int = Field(sa_column=columns.number())


class QueuePauseRow(SQLModel, table=True):
    """That no work of a tenant is leased; of `PLATFORM`: of nobody."""

    __tablename__ = "queue_pause"

    tenant: str = Field(primary_key=True)
    paused_by: str
    reason: str
    time: int = Field(sa_column=columns.number())


class DeadLetterRow(SQLModel, table=True):
    """An evaluation that ended as an infrastructure failure; `retried_as` is the id of the one that was made of it."""

    __tablename__ = "dead_letter"
    __table_args__ = (
        Index("ix_dead_letter_evaluation", "evaluation_seq", unique=True),
        Index("ix_dead_letter_tenant", "tenant", "seq"),
        Index("ix_dead_letter_open", "seq", **columns.only(_NOT_RETRIED)),
    )

    seq: int | None = Field(default=None, sa_column=columns.key())
    evaluation_seq: int = Field(sa_column=Column(columns.BIG, ForeignKey("evaluation.seq"), nullable=False))
    tenant: str
    reason: str
    time: int = Field(sa_column=columns.number())
    retried_as: str | None


class InspectionRow(SQLModel, table=True):
    """One inspection of one executor; `state` as in `inspections`. `attempts` is a list as JSON.

    `owner` is the process whose call it belongs to (`Database.process`), `heard` how often its worker was heard of.
    """

    __tablename__ = "inspection"
    __table_args__ = (
        Index("ix_inspection_id", "id", unique=True),
        Index("ix_inspection_active", "executor", "kind", unique=True, **columns.only(_ACTIVE)),
    )

    seq: int | None = Field(default=None, sa_column=columns.key())
    id: str
    tenant: str
    creator: str
    kind: int
    engine: str
    attempts: str
    executor: str
    boot_id: str
    state: int
    events: int
    reason: str
    message: str
    create_time: int = Field(sa_column=columns.number())
    end_time: int | None = Field(default=None, sa_column=columns.number(nullable=True))
    owner: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default=text("0")))
    heard: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default=text("0")))


class InspectionEventRow(SQLModel, table=True):
    """What an inspection found: a `SignedBytes` as its executor sent it."""

    __tablename__ = "inspection_event"

    inspection_seq: int = Field(
        sa_column=Column(columns.BIG, ForeignKey("inspection.seq"), primary_key=True, autoincrement=False)
    )
    sequence: int = Field(primary_key=True)
    tenant: str
    body: bytes = Field(sa_column=columns.blob())


class ApiKeyRow(SQLModel, table=True):
    """An API key, known by its SHA-256 alone."""

    __tablename__ = "api_key"
    __table_args__ = (Index("ix_api_key_sha256", "sha256", unique=True),)

    id: str = Field(primary_key=True)
    tenant: str
    admin: bool
    description: str
    sha256: bytes = Field(sa_column=columns.blob())
    create_time: int = Field(sa_column=columns.number())
    revoke_time: int | None = Field(default=None, sa_column=columns.number(nullable=True))


class ExecutorRow(SQLModel, table=True):
    """An executor as it last registered: a serialized `crucible.evaluation.v1.Executor`.

    `registration` is another random number each time: by it a process knows whether what it remembers is still so.
    """

    __tablename__ = "executor"

    id: str = Field(primary_key=True)
    tenant: str
    boot_id: str
    description: bytes = Field(sa_column=columns.blob())
    last_seen: int = Field(sa_column=columns.number())
    registration: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default=text("0")))


class SettingRow(SQLModel, table=True):
    """A value that storage made for itself once, such as the key of its page tokens."""

    __tablename__ = "setting"

    name: str = Field(primary_key=True)
    tenant: str
    value: bytes = Field(sa_column=columns.blob())


class AuditPendingRow(SQLModel, table=True):
    """A record of the audit log that has no place in it yet; see `audit`. `details` is a JSON object."""

    __tablename__ = "audit_pending"

    seq: int | None = Field(default=None, sa_column=columns.key())
    tenant: str
    time: int = Field(sa_column=columns.number())
    actor: str
    action: str
    subject: str
    details: str


class AuditRecordRow(SQLModel, table=True):
    """A sealed record of the audit log; never changed. `leaf` and `chain` are hashes, see `LoggedRecord`."""

    __tablename__ = "audit_record"
    __table_args__ = (Index("ix_audit_record_subject", "subject", "position"),)

    position: int | None = Field(default=None, sa_column=Column(columns.BIG, primary_key=True, autoincrement=False))
    tenant: str
    time: int = Field(sa_column=columns.number())
    actor: str
    action: str
    subject: str
    details: str
    leaf: bytes = Field(sa_column=columns.blob())
    chain: bytes = Field(sa_column=columns.blob())


class AuditNodeRow(SQLModel, table=True):
    """The root of a complete subtree of 2^level leaves of the audit log; only every fourth level is kept."""

    __tablename__ = "audit_node"

    level: int = Field(primary_key=True)
    number: int = Field(sa_column=Column(columns.BIG, primary_key=True, autoincrement=False))
    tenant: str
    hash: bytes = Field(sa_column=columns.blob())


class AuditCheckpointRow(SQLModel, table=True):
    """A signed head of the audit log: the parts of its `SignedBytes`, by the number of records that it covers."""

    __tablename__ = "audit_checkpoint"

    size: int | None = Field(default=None, sa_column=Column(columns.BIG, primary_key=True, autoincrement=False))
    tenant: str
    payload: bytes = Field(sa_column=columns.blob())
    key_id: str
    signature: bytes = Field(sa_column=columns.blob())


class AuditHeadRow(SQLModel, table=True):
    """Where the audit log ends: the one row that whoever seals locks. `frontier` has the right edge's hashes."""

    __tablename__ = "audit_head"

    id: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    tenant: str
    size: int = Field(sa_column=columns.number())
    frontier: bytes = Field(sa_column=columns.blob())


metadata = SQLModel.metadata


def _table(name: str) -> Table:
    return metadata.tables[name]


evaluation = _table("evaluation")
program = _table("program")
result = _table("result")
label = _table("label")
failed_attempt = _table("failed_attempt")
event = _table("event")
output = _table("output")
usage_sample = _table("usage_sample")
evaluation_count = _table("evaluation_count")
batch = _table("batch")
batch_item = _table("batch_item")
batch_count = _table("batch_count")
batch_dependency = _table("batch_dependency")
batch_settlement = _table("batch_settlement")
blob = _table("blob")
artifact = _table("artifact")
large_output = _table("large_output")
tenant = _table("tenant")
tenant_use = _table("tenant_use")
queue_pause = _table("queue_pause")
dead_letter = _table("dead_letter")
api_key = _table("api_key")
executor = _table("executor")
audit_pending = _table("audit_pending")
audit_record = _table("audit_record")
audit_node = _table("audit_node")
audit_checkpoint = _table("audit_checkpoint")
audit_head = _table("audit_head")
