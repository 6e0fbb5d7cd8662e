"""Loads and saves records: one SELECT, one compare-and-set UPDATE, and the events in the same transaction."""

from dataclasses import fields
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import event_pb2
from crucible_rpc.errors import AbortedError, NotFoundError
from crucible_storage import models
from crucible_storage.lifecycle import HELD, QUEUED, TERMINAL, Changes, Record
from crucible_storage.names import run_id
from crucible_storage.transaction import Stop, WriteTransaction

_COLUMNS = [field.name for field in fields(Record) if field.name != "changes"]
_MUTABLE = _COLUMNS[_COLUMNS.index("state") :]
_ROW = models.evaluation.c
_SELECT = select(*(_ROW[name] for name in _COLUMNS))
_BY_ID = _SELECT.where(_ROW.id == bindparam("id"))
_BY_SEQ = _SELECT.where(_ROW.seq == bindparam("seq"))
# SQLAlchemy leaves these out on SQLite, whose writer is alone. Others may go on referring to the row.
_BY_ID_TO_CHANGE = _BY_ID.with_for_update(key_share=True)
_BY_SEQ_TO_CHANGE = _BY_SEQ.with_for_update(key_share=True)
_WAITING_BY_SEQ = _BY_SEQ.where(_ROW.state == QUEUED).with_for_update(key_share=True, skip_locked=True)
_INSERT = insert(models.evaluation)
_UPDATE = (
    update(models.evaluation)
    .where(_ROW.seq == bindparam("key"), _ROW.version == bindparam("expected"), _ROW.state < min(TERMINAL))
    .values({name: bindparam(f"new_{name}") for name in _MUTABLE})
)
_INSERT_RESULT = insert(models.result)
_INSERT_FAILED = insert(models.failed_attempt)


def load(connection: Connection, evaluation_id: str, *, to_change: bool = False) -> Record | None:
    """The record with this id; None when there is none.

    Args:
        connection: of a reader or of the writer.
        evaluation_id: which.
        to_change: no other process may change it until the transaction ends.
    """
    row = connection.execute(_BY_ID_TO_CHANGE if to_change else _BY_ID, {"id": evaluation_id}).fetchone()
    return None if row is None else Record(*row)


def load_by_seq(connection: Connection, seq: int, *, to_change: bool = False) -> Record:
    """The record with this number, which exists. `to_change` as in `load`."""
    return Record(*connection.execute(_BY_SEQ_TO_CHANGE if to_change else _BY_SEQ, {"seq": seq}).one())


def take_waiting(connection: Connection, seq: int) -> Record | None:
    """The record with this number, to be changed; None when another process has it, or it does not wait any more."""
    row = connection.execute(_WAITING_BY_SEQ, {"seq": seq}).fetchone()
    return None if row is None else Record(*row)


def load_owned(connection: Connection, tenant: str, evaluation_id: str, *, to_change: bool = False) -> Record:
    """The record with this id, which must be this tenant's. `to_change` as in `load`.

    Raises:
        NotFoundError: EVALUATION_NOT_FOUND, also for another tenant's.
    """
    record = load(connection, evaluation_id, to_change=to_change)
    if record is None or record.tenant != tenant:
        raise NotFoundError("EVALUATION_NOT_FOUND", f"there is no evaluation evaluations/{evaluation_id}")
    return record


def insert_record(transaction: WriteTransaction, record: Record, now: int) -> None:
    """Stores a new record, whose `seq` it fills in, with its first events."""
    values = {name: getattr(record, name) for name in _COLUMNS if name != "seq"}
    key = transaction.execute(_INSERT, values).inserted_primary_key
    record.seq = key[0] if key is not None else 0
    transaction.count(record.tenant, record.state, 1)
    transaction.notices.work = True
    transaction.notices.created.append((record.id, record.tenant))
    _append(transaction, record, now)


def save(transaction: WriteTransaction, record: Record, before: "Before", now: int) -> None:
    """Stores what changed, by compare-and-set on the version that was loaded.

    Raises:
        AbortedError: somebody else changed it, or it is terminal.
    """
    values: dict[str, Any] = {f"new_{name}": getattr(record, name) for name in _MUTABLE}
    values |= {"key": record.seq, "expected": before.version}
    if transaction.execute(_UPDATE, values).rowcount != 1:
        raise AbortedError("STALE_LEASE", f"evaluations/{record.id} was changed meanwhile; read it again")
    if record.changes.result is not None:
        blob = record.changes.result.SerializeToString()
        transaction.execute(_INSERT_RESULT, {"evaluation_seq": record.seq, "tenant": record.tenant, "result": blob})
    for failed in record.changes.failed:
        row = {"evaluation_seq": record.seq, "attempt": failed.attempt, "tenant": record.tenant}
        transaction.execute(_INSERT_FAILED, row | {"reason": failed.reason, "time": now})
    _append(transaction, record, now)
    _notify(transaction, record, before, now)


class Before:
    """What `save` compares with: taken before a record is changed."""

    __slots__ = ("cancel_wanted", "state", "version")

    def __init__(self, record: Record) -> None:
        self.version = record.version
        self.state = record.state
        self.cancel_wanted = record.cancel_wanted


def _append(transaction: WriteTransaction, record: Record, now: int) -> None:
    """Appends the events; output's bytes go to their own table, under the event's position."""
    for event in record.changes.events:
        if event.WhichOneof("kind") == "output":
            transaction.append_output(record.seq, now, _output_row(record, event.output))
        else:
            body = event.SerializeToString()
            transaction.append_event(record.tenant, record.seq, record.attempt, now, body)
    record.changes = Changes()


def _output_row(record: Record, chunk: event_pb2.OutputChunk) -> dict[str, Any]:
    return {
        "tenant": record.tenant,
        "attempt": record.attempt,
        "stream": int(chunk.stream),
        "offset": chunk.offset,
        "size": len(chunk.data),
        "data": chunk.data,
    }


def _notify(transaction: WriteTransaction, record: Record, before: Before, now: int) -> None:
    notices = transaction.notices
    if record.state != before.state:
        transaction.count(record.tenant, before.state, -1)
        transaction.count(record.tenant, record.state, 1)
        notices.work |= record.state == QUEUED
        if record.terminal:
            notices.finished.append(record.id)
    if record.cancel_wanted and not before.cancel_wanted and record.state in HELD and record.executor is not None:
        notices.stops.append(Stop(record.executor, run_id(record.id, record.attempt), record.epoch, now))
