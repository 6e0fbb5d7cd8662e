"""The tables of batches; the rest are in `models`, which has these too."""

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from crucible_storage import columns

_ENDED = text("end_position IS NOT NULL")
_TASK = text("task <> 0")


class BatchRow(SQLModel, table=True):
    """One batch. `task` is what `batch_tasks` is to do to its items, `task_cursor` how far that is."""

    __tablename__ = "batch"
    __table_args__ = (
        Index("ix_batch_id", "id", unique=True),
        Index("ix_batch_request", "tenant", "request_id", unique=True),
        Index("ix_batch_list", "tenant", "seq"),
        Index("ix_batch_task", "seq", **columns.only(_TASK)),
    )

    seq: int | None = Field(default=None, sa_column=columns.key())
    id: str
    tenant: str
    creator: str
    request_id: str
    header_sha256: bytes = Field(sa_column=columns.blob())
    labels: str
    start_when_complete: bool
    items: int
    create_time: int = Field(sa_column=columns.number())
    complete_time: int | None = Field(default=None, sa_column=columns.number(nullable=True))
    cancel_by: str | None = None
    cancel_reason: str | None = None
    cancel_time: int | None = Field(default=None, sa_column=columns.number(nullable=True))
    task: int = 0
    task_cursor: int = 0


class BatchItemRow(SQLModel, table=True):
    """One item of a batch. `end_position` is that of the event of its end, `end_kind` a kind of `progress`."""

    __tablename__ = "batch_item"
    __table_args__ = (
        Index("ix_batch_item_number", "batch", "number", unique=True),
        Index("ix_batch_item_key", "batch", "key", unique=True),
        Index("ix_batch_item_end", "batch", "end_position", **columns.only(_ENDED)),
    )

    evaluation_seq: int = Field(sa_column=columns.owner())
    tenant: str
    batch: str
    number: int
    key: str
    sha256: bytes = Field(sa_column=columns.blob())
    run_anyway: bool
    end_position: int | None = Field(default=None, sa_column=columns.number(nullable=True))
    end_kind: int | None = None


class BatchCountRow(SQLModel, table=True):
    """How many items of a batch are of a kind of `progress`; kept in the transaction that changes it."""

    __tablename__ = "batch_count"

    batch: str = Field(primary_key=True)
    kind: int = Field(primary_key=True)
    tenant: str
    count: int = Field(sa_column=columns.number())


class DependencyRow(SQLModel, table=True):
    """An item that waits for another one to end; gone when that end was taken account of."""

    __tablename__ = "batch_dependency"

    needed_seq: int = Field(sa_column=columns.owner())
    evaluation_seq: int = Field(sa_column=columns.owner())
    tenant: str


class SettlementRow(SQLModel, table=True):
    """An item that ended while others waited for it, and of whose end not all of them have been told."""

    __tablename__ = "batch_settlement"

    evaluation_seq: int = Field(sa_column=columns.owner())
    tenant: str
