"""Loads and saves records: one SELECT, one compare-and-set UPDATE, and the events in the same transaction."""

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import event_pb2
from crucible_rpc.errors import AbortedError, NotFoundError
from crucible_storage import audit, large_outputs, models, progress
from crucible_storage.clock import timestamp
from crucible_storage.lifecycle import DELETED, HELD, QUEUED, TERMINAL, Changes, End, Record
from crucible_storage.names import evaluation_name, run_id
from crucible_storage.prepared import Prepared
from crucible_storage.transaction import Stop, WriteTransaction

_COLUMNS = [field.name for field in fields(Record) if field.name != "changes"]
_MUTABLE = _COLUMNS[_COLUMNS.index("state") :]
_mutable = attrgetter(*_MUTABLE)
_ROW = models.evaluation.c
_SELECT = select(*(_ROW[name] for name in _COLUMNS))
_SELECT_BY_ID = _SELECT.where(_ROW.id == bindparam("id"))
_SELECT_BY_SEQ = _SELECT.where(_ROW.seq == bindparam("seq"))
_BY_ID, _BY_SEQ = Prepared(_SELECT_BY_ID), Prepared(_SELECT_BY_SEQ)
_PAGE = _SELECT.where(_ROW.seq > bindparam("after")).order_by(_ROW.seq).limit(bindparam("limit"))
# SQLAlchemy leaves these out on SQLite, whose writer is alone. Others may go on referring to the row.
_BY_ID_TO_CHANGE = Prepared(_SELECT_BY_ID.with_for_update(key_share=True))
_BY_SEQ_TO_CHANGE = Prepared(_SELECT_BY_SEQ.with_for_update(key_share=True))
_WAITING_BY_SEQ = Prepared(
    select(models.program.c.run_spec, *(_ROW[name] for name in _COLUMNS))
    .join(models.program, models.program.c.evaluation_seq == _ROW.seq)
    .where(_ROW.seq == bindparam("seq"), _ROW.state == QUEUED)
    .with_for_update(of=models.evaluation, key_share=True, skip_locked=True)
)
_BY_IDS_TO_CHANGE = (
    _SELECT.where(_ROW.id.in_(bindparam("ids", expanding=True))).order_by(_ROW.seq).with_for_update(key_share=True)
)
_NEW = insert(models.evaluation).values({name: bindparam(name) for name in _COLUMNS if name != "seq"})
_INSERT, _INSERT_MANY = Prepared(_NEW.returning(_ROW.seq)), Prepared(_NEW)
_SEQS = select(_ROW.id, _ROW.seq).where(_ROW.id.in_(bindparam("ids", expanding=True)))
_INSERT_RESULT = Prepared(insert(models.result))
_INSERT_FAILED = Prepared(insert(models.failed_attempt))
_INSERT_DEAD = insert(models.dead_letter)


@cache
def _update(names: tuple[str, ...]) -> Prepared:
    """The UPDATE of these columns: naming others would make the database touch their indexes for nothing."""
    statement = update(models.evaluation).where(
        _ROW.seq == bindparam("key"),
        _ROW.version == bindparam("expected"),
        _ROW.blocked == bindparam("expected_blocked"),
        _ROW.state < min(TERMINAL),
    )
    return Prepared(statement.values({name: bindparam(f"new_{name}") for name in names}))


def load(connection: Connection, evaluation_id: str, *, to_change: bool = False) -> Record | None:
    """The record with this id; None when there is none.

    Args:
        connection: of a reader or of the writer.
        evaluation_id: which.
        to_change: no other process may change it until the transaction ends.
    """
    row = (_BY_ID_TO_CHANGE if to_change else _BY_ID).first(connection, {"id": evaluation_id})
    return None if row is None else Record(*row)


def load_by_seq(connection: Connection, seq: int, *, to_change: bool = False) -> Record:
    """The record with this number, which exists. `to_change` as in `load`."""
    row = (_BY_SEQ_TO_CHANGE if to_change else _BY_SEQ).first(connection, {"seq": seq})
    if row is None:
        raise LookupError(f"there is no evaluation number {seq}")
    return Record(*row)


def load_page(connection: Connection, after: int, limit: int) -> list[Record]:
    """At most `limit` records with the next numbers above `after`, in their order, deleted ones too."""
    return [Record(*row) for row in connection.execute(_PAGE, {"after": after, "limit": limit})]


def take_waiting(connection: Connection, seq: int) -> tuple[Record, bytes] | None:
    """The record with this number, to be changed, and what it is to run: a serialized `RunSpec`.

    None when another process has it, or it does not wait any more.
    """
    row = _WAITING_BY_SEQ.first(connection, {"seq": seq})
    return None if row is None else (Record(*row[1:]), row[0])


def load_all(connection: Connection, evaluation_ids: Sequence[str]) -> dict[str, Record]:
    """Those of these records that there are, by id; no other process may change them until the transaction ends."""
    rows = connection.execute(_BY_IDS_TO_CHANGE, {"ids": evaluation_ids})
    return {record.id: record for record in (Record(*row) for row in rows)}


def load_owned(connection: Connection, tenant: str, evaluation_id: str, *, to_change: bool = False) -> Record:
    """The record with this id, which must be this tenant's. `to_change` as in `load`.

    Raises:
        NotFoundError: EVALUATION_NOT_FOUND, also for another tenant's, and for one that was deleted.
    """
    record = load(connection, evaluation_id, to_change=to_change)
    if record is None or record.tenant != tenant or record.state == DELETED:
        raise not_found(evaluation_id)
    return record


def not_found(evaluation_id: str) -> NotFoundError:
    """The error that there is no such evaluation."""
    return NotFoundError("EVALUATION_NOT_FOUND", f"there is no evaluation evaluations/{evaluation_id}")


def insert_record(transaction: WriteTransaction, record: Record, now: int) -> None:
    """Stores a new record, whose `seq` it fills in, with its first events."""
    values = {name: getattr(record, name) for name in _COLUMNS if name != "seq"}
    row = _INSERT.first(transaction.connection, values)
    record.seq = 0 if row is None else row[0]
    transaction.count(record.tenant, record.state, 1)
    transaction.notices.work = True
    transaction.notices.created.append((record.id, record.tenant))
    _append(transaction, record, now)


def insert_records(transaction: WriteTransaction, records: Sequence[Record], now: int) -> None:
    """Stores new records at once, as `insert_record` does one: a statement for all rows, not one for each."""
    names = [name for name in _COLUMNS if name != "seq"]
    rows = [{name: getattr(record, name) for name in names} for record in records]
    _INSERT_MANY.many(transaction.connection, rows)
    found = transaction.execute(_SEQS, {"ids": [record.id for record in records]})
    seqs = {row.id: row.seq for row in found}
    for record in records:
        record.seq = seqs[record.id]
        transaction.count(record.tenant, record.state, 1)
        transaction.notices.created.append((record.id, record.tenant))
        _append(transaction, record, now)
    transaction.notices.work |= any(not record.blocked for record in records)


def save(transaction: WriteTransaction, record: Record, before: "Before", now: int) -> None:
    """Stores what changed, by compare-and-set on the version that was loaded.

    Raises:
        AbortedError: somebody else changed it, or it is terminal.
    """
    connection = transaction.connection
    values = before.changed(record)
    kind = progress.kind_of(record)
    if values:
        parameters = {f"new_{name}": value for name, value in values.items()}
        parameters |= {"key": record.seq, "expected": before.version, "expected_blocked": record.blocked}
        if not _update(tuple(values)).changes(connection, parameters, rows=1):
            raise AbortedError("STALE_LEASE", f"evaluations/{record.id} was changed meanwhile; read it again")
    if record.changes.result is not None:
        if (end := _whole_end(record, before)) is not None:
            transaction.notices.ends[record.id] = end
        blob = record.changes.result.SerializeToString()
        _INSERT_RESULT.changes(connection, {"evaluation_seq": record.seq, "tenant": record.tenant, "result": blob})
        audit.evaluation_finished(transaction, record, record.changes.result, now)
        if record.changes.result.termination.WhichOneof("kind") == "infrastructure_failure":
            reason = record.changes.result.termination.infrastructure_failure.reason
            dead = {"evaluation_seq": record.seq, "tenant": record.tenant, "reason": reason, "time": now}
            transaction.execute(_INSERT_DEAD, dead)
    for failed in record.changes.failed:
        row = {"evaluation_seq": record.seq, "attempt": failed.attempt, "tenant": record.tenant}
        _INSERT_FAILED.changes(connection, row | {"reason": failed.reason, "time": now})
    _append(transaction, record, now)
    _notify(transaction, record, before, now)
    progress.moved(transaction, record, before.kind, kind)


class Before:
    """What `save` compares with: taken before a record is changed."""

    __slots__ = ("_values", "attempt", "cancel_wanted", "kind", "state", "version")

    def __init__(self, record: Record) -> None:
        self.version = record.version
        self.state = record.state
        self.kind = progress.kind_of(record)
        self.attempt = record.attempt
        self.cancel_wanted = record.cancel_wanted
        self._values = _mutable(record)

    def changed(self, record: Record) -> dict[str, Any]:
        """The columns that have other values now."""
        now = zip(_MUTABLE, self._values, _mutable(record), strict=True)
        return {name: new for name, old, new in now if old != new}


def _whole_end(record: Record, before: "Before") -> End | None:
    """The end that is about to be stored, when nothing that belongs to it is in the database alone."""
    result = record.changes.result
    if result is None or before.state not in HELD or not record.attempt == before.attempt == 1:
        return None
    written: dict[int, bytes] = {}
    for event in record.changes.events:
        if event.WhichOneof("kind") == "output":
            stream = int(event.output.stream)
            written[stream] = written.get(stream, b"") + event.output.data
    if sum(map(len, written.values())) != record.stdout_bytes + record.stderr_bytes:
        return None
    return End(record, result, written)


def _append(transaction: WriteTransaction, record: Record, now: int) -> None:
    """Appends the events; output's bytes go to their own table, under the event's position."""
    name, at = evaluation_name(record.id), timestamp(now)
    for event in record.changes.events:
        if event.WhichOneof("kind") == "output":
            transaction.append_output(record.seq, now, _output_row(record, event.output))
        else:
            body = event.SerializeToString()
            transaction.append_event(record.tenant, record.seq, record.attempt, now, body)
        event.evaluation, event.tenant, event.attempt = name, record.tenant, record.attempt
        event.time.CopyFrom(at)
        transaction.notices.events.append(event)
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
        if before.state in HELD and record.state not in HELD:
            notices.freed.add(record.tenant)
            if record.attempt == before.attempt:  # not one that its executor refused: that wrote nothing
                transaction.usage.stored(record.tenant, record.stdout_bytes + record.stderr_bytes)
                large_outputs.note(transaction, record)
        if record.terminal:
            notices.finished.append(record.id)
    if record.cancel_wanted and not before.cancel_wanted and record.state in HELD and record.executor is not None:
        notices.stops.append(Stop(record.executor, run_id(record.id, record.attempt), record.epoch, now))
