"""The tables. Every one has `tenant`; times are microseconds since 1970 UTC, because SQLite keeps no time zone.

An evaluation's row is small and changes often; what is large or never changes (program, result, output) has tables of
its own, so that a state change rewrites no megabytes. `executor` and `setting` belong to the platform, not to a tenant:
there `tenant` is `PLATFORM`. The same tables serve SQLite and PostgreSQL.
"""

from typing import Any

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, TextClause, text
from sqlmodel import Field, SQLModel

PLATFORM = "*"
"""The tenant of rows that belong to no tenant; never the name of one."""

_BIG = BigInteger().with_variant(Integer(), "sqlite")

_WAITING = text("state = 1 AND not_before IS NULL")
_DELAYED = text("state = 1 AND not_before IS NOT NULL")
_NAMED = text("request_id IS NOT NULL")
_HELD = text("state IN (2, 3)")
_ACTIVE = text("state IN (1, 2)")


def _only(condition: TextClause) -> dict[str, Any]:
    """A partial index."""
    return {"sqlite_where": condition, "postgresql_where": condition}


def _key() -> Column[int]:
    return Column(_BIG, primary_key=True, autoincrement=True)


def _owner() -> Column[int]:
    return Column(_BIG, ForeignKey("evaluation.seq"), primary_key=True, autoincrement=False)


def _number(*, nullable: bool = False) -> Column[int]:
    return Column(BigInteger, nullable=nullable)


def _bytes(*, nullable: bool = False) -> Column[bytes]:
    return Column(LargeBinary, nullable=nullable)


class EvaluationRow(SQLModel, table=True):
    """One evaluation: what is constant and small, and everything that changes."""

    __tablename__ = "evaluation"
    __table_args__ = (
        Index("ix_evaluation_id", "id", unique=True),
        Index("ix_evaluation_request", "tenant", "request_id", unique=True, **_only(_NAMED)),
        Index("ix_evaluation_list", "tenant", "state", "seq"),
        Index("ix_evaluation_waiting", "lane", "rank", "seq", **_only(_WAITING)),
        Index("ix_evaluation_delayed", "not_before", **_only(_DELAYED)),
        Index("ix_evaluation_held", "executor", **_only(_HELD)),
        Index("ix_evaluation_renewed", "lease_renewed", **_only(_HELD)),
    )

    seq: int | None = Field(default=None, sa_column=_key())
    id: str
    tenant: str
    creator: str
    request_id: str | None
    spec_sha256: bytes = Field(sa_column=_bytes())
    run_spec_sha256: bytes = Field(sa_column=_bytes())
    run_spec_size: int
    runtime: str
    engine: str
    priority: int
    limits: bytes = Field(sa_column=_bytes())
    output_limit: int = Field(sa_column=_number())
    labels: str
    lane: str
    rank: int = Field(sa_column=_number())
    create_time: int = Field(sa_column=_number())
    state: int
    version: int = Field(sa_column=_number())
    attempt: int
    epoch: int = Field(sa_column=_number())
    not_before: int | None = Field(sa_column=_number(nullable=True))
    executor: str | None
    boot_id: str | None
    lease_renewed: int | None = Field(sa_column=_number(nullable=True))
    lease_expiry: int | None = Field(sa_column=_number(nullable=True))
    lost_reason: str | None
    cancel_by: str | None
    cancel_reason: str | None
    cancel_time: int | None = Field(sa_column=_number(nullable=True))
    stdout_bytes: int = Field(sa_column=_number())
    stderr_bytes: int = Field(sa_column=_number())
    start_time: int | None = Field(sa_column=_number(nullable=True))
    end_time: int | None = Field(sa_column=_number(nullable=True))
    behaviour_updates: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))


class ProgramRow(SQLModel, table=True):
    """What to run: the `crucible.executor.v1.RunSpec`, serialized once, so that its digest holds for ever."""

    __tablename__ = "program"

    evaluation_seq: int = Field(sa_column=_owner())
    tenant: str
    run_spec: bytes = Field(sa_column=_bytes())


class ResultRow(SQLModel, table=True):
    """How an evaluation ended: a `crucible.evaluation.v1.Evaluation` with only what the end added."""

    __tablename__ = "result"

    evaluation_seq: int = Field(sa_column=_owner())
    tenant: str
    result: bytes = Field(sa_column=_bytes())


class LabelRow(SQLModel, table=True):
    """One label of one evaluation, for lists by label."""

    __tablename__ = "label"
    __table_args__ = (Index("ix_label_value", "tenant", "key", "value", "evaluation_seq"),)

    evaluation_seq: int = Field(sa_column=_owner())
    key: str = Field(primary_key=True)
    tenant: str
    value: str


class FailedAttemptRow(SQLModel, table=True):
    """An attempt that the infrastructure ended and after which another was allowed."""

    __tablename__ = "failed_attempt"

    evaluation_seq: int = Field(sa_column=_owner())
    attempt: int = Field(primary_key=True)
    tenant: str
    reason: str
    time: int = Field(sa_column=_number())


class EventRow(SQLModel, table=True):
    """One entry of the event log. `body` is a `crucible.evaluation.v1.Event` with only its `kind`; empty for output."""

    __tablename__ = "event"
    __table_args__ = (Index("ix_event_evaluation", "evaluation_seq", "position"),)

    position: int | None = Field(default=None, sa_column=Column(_BIG, primary_key=True, autoincrement=False))
    tenant: str
    evaluation_seq: int = Field(sa_column=Column(_BIG, ForeignKey("evaluation.seq"), nullable=False))
    time: int = Field(sa_column=_number())
    attempt: int
    body: bytes = Field(sa_column=_bytes())


class OutputRow(SQLModel, table=True):
    """Bytes of one stream of one attempt; `position` is that of the event that tells of them."""

    __tablename__ = "output"
    __table_args__ = (Index("ix_output_stream", "evaluation_seq", "attempt", "stream", "offset", unique=True),)

    position: int | None = Field(default=None, sa_column=Column(_BIG, primary_key=True, autoincrement=False))
    tenant: str
    evaluation_seq: int = Field(sa_column=Column(_BIG, ForeignKey("evaluation.seq"), nullable=False))
    attempt: int
    stream: int
    offset: int = Field(sa_column=_number())
    size: int
    data: bytes = Field(sa_column=_bytes())


class LogHeadRow(SQLModel, table=True):
    """The one row that says how far the event log goes. Whoever appends changes it, and so has it locked."""

    __tablename__ = "log_head"

    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    tenant: str
    position: int = Field(sa_column=_number())


class CountRow(SQLModel, table=True):
    """How many evaluations of a tenant are in a state; kept in the transaction that changes the state."""

    __tablename__ = "evaluation_count"

    tenant: str = Field(primary_key=True)
    state: int = Field(primary_key=True)
    count: int = Field(sa_column=_number())


class InspectionRow(SQLModel, table=True):
    """One inspection of one executor; `state` as in `inspections`. `attempts` is a list as JSON."""

    __tablename__ = "inspection"
    __table_args__ = (
        Index("ix_inspection_id", "id", unique=True),
        Index("ix_inspection_active", "executor", "kind", unique=True, **_only(_ACTIVE)),
    )

    seq: int | None = Field(default=None, sa_column=_key())
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
    create_time: int = Field(sa_column=_number())
    end_time: int | None = Field(default=None, sa_column=_number(nullable=True))


class InspectionEventRow(SQLModel, table=True):
    """What an inspection found: a `SignedBytes` as its executor sent it."""

    __tablename__ = "inspection_event"

    inspection_seq: int = Field(
        sa_column=Column(_BIG, ForeignKey("inspection.seq"), primary_key=True, autoincrement=False)
    )
    sequence: int = Field(primary_key=True)
    tenant: str
    body: bytes = Field(sa_column=_bytes())


class ApiKeyRow(SQLModel, table=True):
    """An API key, known by its SHA-256 alone."""

    __tablename__ = "api_key"
    __table_args__ = (Index("ix_api_key_sha256", "sha256", unique=True),)

    id: str = Field(primary_key=True)
    tenant: str
    admin: bool
    description: str
    sha256: bytes = Field(sa_column=_bytes())
    create_time: int = Field(sa_column=_number())
    revoke_time: int | None = Field(default=None, sa_column=_number(nullable=True))


class ExecutorRow(SQLModel, table=True):
    """An executor as it last registered: a serialized `crucible.evaluation.v1.Executor`.

    `registration` is another random number each time: by it a process knows whether what it remembers is still so.
    """

    __tablename__ = "executor"

    id: str = Field(primary_key=True)
    tenant: str
    boot_id: str
    description: bytes = Field(sa_column=_bytes())
    last_seen: int = Field(sa_column=_number())
    registration: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default=text("0")))


class SettingRow(SQLModel, table=True):
    """A value that storage made for itself once, such as the key of its page tokens."""

    __tablename__ = "setting"

    name: str = Field(primary_key=True)
    tenant: str
    value: bytes = Field(sa_column=_bytes())


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
evaluation_count = _table("evaluation_count")
api_key = _table("api_key")
executor = _table("executor")
