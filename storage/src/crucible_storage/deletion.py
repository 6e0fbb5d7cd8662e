"""Deletes evaluations that have ended, on request and by age, each in one transaction.

Program, result, labels, output, usage samples and artifacts go. The row stays as a tombstone with `lifecycle.DELETED`;
the last event tells the digests of the final record and of the output, who deleted it and when; the events before it
are emptied and keep their positions, so that the log has no gap for those who follow it. The record's digest covers the
artifacts.

An item of a batch is deleted only when its batch has ended: until then others may wait for it. Its place in the batch
and the batch's counts stay as they were.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from google.protobuf.message import DecodeError
from sqlalchemy import and_, bindparam, delete, exists, func, or_, select, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.event_pb2 import EvaluationDeleted, Event, EventRemoved
from crucible_rpc import logs
from crucible_rpc.errors import DataLossError, FailedPreconditionError, InternalError
from crucible_storage import audit, faults, large_outputs, models, outputs, store
from crucible_storage.artifacts import references
from crucible_storage.clock import Clock, micros
from crucible_storage.database import Database
from crucible_storage.lifecycle import DELETED, MAX_REASON, TERMINAL, Record
from crucible_storage.names import batch_name, evaluation_name
from crucible_storage.transaction import WriteTransaction

BY_AGE = "retention"
"""Who deleted what was old enough; never the id of an API key."""

MAX_PER_TRANSACTION = 20
MAX_EVENTS_PER_TRANSACTION = 2000
_PAGE = 50
_TRIES = 3

_EVALUATION, _EVENT = models.evaluation.c, models.event.c
_OWNED = (
    models.output,
    models.result,
    models.program,
    models.label,
    models.failed_attempt,
    models.dead_letter,
    models.usage_sample,
)
_DELETE_OWNED = [delete(table).where(table.c.evaluation_seq == bindparam("seq")) for table in _OWNED]
_EMPTY_EVENTS = update(models.event).where(_EVENT.evaluation_seq == bindparam("seq")).values(body=bindparam("marker"))
_LAST_EVENT = (
    select(_EVENT.body, _EVENT.time)
    .where(_EVENT.evaluation_seq == bindparam("seq"))
    .order_by(_EVENT.position.desc())
    .limit(1)
)
_TOMBSTONE = (
    update(models.evaluation)
    .where(
        _EVALUATION.seq == bindparam("key"),
        _EVALUATION.version == bindparam("expected"),
        _EVALUATION.state.in_(sorted(TERMINAL)),
    )
    .values(
        state=DELETED,
        version=_EVALUATION.version + 1,
        request_id=None,
        labels="{}",
        limits=b"",
        cancel_by=None,
        cancel_reason=None,
    )
)
_OUTPUT_BYTES = select(func.coalesce(func.sum(models.output.c.size), 0)).where(
    models.output.c.evaluation_seq == bindparam("seq")
)
_RESULT = select(models.result.c.result).where(models.result.c.evaluation_seq == bindparam("seq"))
_BATCH, _SIBLING = models.batch.c, models.evaluation.alias("sibling").c
_BATCH_GOES_ON = or_(
    and_(_BATCH.complete_time.is_(None), _BATCH.cancel_time.is_(None)),
    exists().where(_SIBLING.batch == _BATCH.id, _SIBLING.state < min(TERMINAL)),
)
_UNENDED_BATCH = select(_BATCH.id).where(_BATCH.id == bindparam("batch"), _BATCH_GOES_ON)
_AGED = (
    select(_EVALUATION.seq, _EVALUATION.create_time, _EVALUATION.end_time)
    .where(
        _EVALUATION.tenant == bindparam("tenant"),
        _EVALUATION.state == bindparam("state"),
        _EVALUATION.seq > bindparam("after"),
        or_(_EVALUATION.batch.is_(None), ~exists().where(_BATCH.id == _EVALUATION.batch, _BATCH_GOES_ON)),
    )
    .order_by(_EVALUATION.seq)
    .limit(_PAGE)
)
_COUNT = models.evaluation_count.c
_COUNTED = select(_COUNT.tenant, _COUNT.state).where(_COUNT.count > 0, _COUNT.state.in_(sorted(TERMINAL)))
_MARKER = Event(removed=EventRemoved()).SerializeToString()
_Damaged = dict[int, Exception]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deleted:
    """A deletion: whose evaluation it was, what is left of it, and when it was deleted (microseconds since 1970)."""

    tenant: str
    left: EvaluationDeleted
    time: int


@dataclass(frozen=True, slots=True)
class Keep:
    """How long an evaluation is kept after its end.

    Attributes:
        default: for tenants that are not named; None: for ever.
        tenants: by name.
    """

    default: timedelta | None = None
    tenants: Mapping[str, timedelta | None] = field(default_factory=dict)

    def of(self, tenant: str) -> timedelta | None:
        """What holds for a tenant; None: for ever."""
        return self.tenants.get(tenant, self.default)

    @property
    def for_ever(self) -> bool:
        """Whether nothing is ever deleted by age."""
        return self.default is None and not any(self.tenants.values())


class Deletion:
    """Deletes evaluations.

    Args:
        database: where.
        clock: says what is old, and when something was deleted.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def delete(self, evaluation_id: str, by: str, reason: str) -> Deleted:
        """Deletes one evaluation, whosever it is; deleted before, the answer is that of the first time.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND.
            FailedPreconditionError: EVALUATION_NOT_TERMINAL or BATCH_NOT_ENDED.
            InternalError: its events are damaged.
        """

        def run(transaction: WriteTransaction) -> Deleted | None:
            record = store.load(transaction.connection, evaluation_id, to_change=True)
            if record is None:
                raise store.not_found(evaluation_id)
            if record.state == DELETED:
                return _deleted_before(transaction.connection, record)
            if not record.terminal:
                text = f"evaluations/{record.id} has not ended; cancel it first"
                raise FailedPreconditionError("EVALUATION_NOT_TERMINAL", text)
            if _batch_goes_on(transaction.connection, record):
                batch = batch_name(record.batch or "")
                text = f"evaluations/{record.id} is an item of {batch}, which has not ended; wait for it or cancel it"
                raise FailedPreconditionError("BATCH_NOT_ENDED", text, metadata={"batch": batch})
            return _delete(transaction, record, by, reason, self._clock.now())[0]

        for _ in range(_TRIES):  # its last events may be of the same commit as this: they are there at the next
            if (deleted := await self._database.write(run)) is not None:
                return deleted
        raise InternalError("INTERNAL", "the evaluation's events do not tell of its end; run `crucible storage check`")

    async def delete_aged(self, keep: Keep, passed_over: set[int] | None = None) -> int:
        """Deletes a few of those that are older than they are kept; answers how many, 0 when there are no more.

        One that cannot be deleted, for what is stored of it is damaged, is logged and holds up no other.

        Args:
            keep: how long.
            passed_over: those that were not to be deleted: they are not tried again, and more of them are added.
        """
        passed_over = set() if passed_over is None else passed_over
        deleted = 0
        while not deleted and not keep.for_ever:
            seqs = await self._database.read(lambda connection: self._aged(connection, keep, passed_over))
            if not seqs:
                return 0
            deleted, left, damaged = await self._database.write(partial(self._delete_some, seqs))
            passed_over.update(left, damaged)
            for seq, error in damaged.items():
                _LOG.error(
                    "an old evaluation could not be deleted: %s; run `crucible storage check`",
                    error,
                    exc_info=None if isinstance(error, DataLossError | DecodeError) else error,
                    extra=logs.fields(evaluation_seq=seq),
                )
        return deleted

    def _delete_some(self, seqs: Sequence[int], transaction: WriteTransaction) -> tuple[int, list[int], _Damaged]:
        """Deletes some by age; answers how many, those that are not to be deleted now, and those that cannot be."""
        now, deleted, events = self._clock.now(), 0, 0
        left: list[int] = []
        damaged: _Damaged = {}
        for seq in seqs:
            if events >= MAX_EVENTS_PER_TRANSACTION:
                break
            try:
                with transaction.savepoint():
                    record = store.load_by_seq(transaction.connection, seq, to_change=True)
                    one, emptied = None, 0
                    if record.terminal:  # a batch that has ended stays so
                        one, emptied = _delete(transaction, record, BY_AGE, "older than evaluations are kept", now)
            except Exception as error:
                if faults.ends_transaction(error):
                    raise
                damaged[seq] = error
                continue
            if one is None:
                left.append(seq)
            else:
                deleted, events = deleted + 1, events + emptied
        return deleted, left, damaged

    def _aged(self, connection: Connection, keep: Keep, passed_over: Set[int]) -> list[int]:
        found: list[int] = []
        for tenant, state in connection.execute(_COUNTED).fetchall():
            age = keep.of(tenant)
            if age is not None:
                for seq in _older(connection, tenant, state, self._clock.now() - micros(age)):
                    if seq not in passed_over:
                        found.append(seq)
                    if len(found) == MAX_PER_TRANSACTION:
                        return found
        return found


def _older(connection: Connection, tenant: str, state: int, before: int) -> Iterator[int]:
    """Those that ended before a time, oldest first. Looks at none that was made after it: no index needs their ends."""
    after = 0
    while rows := connection.execute(_AGED, {"tenant": tenant, "state": state, "after": after}).fetchall():
        for seq, create_time, end_time in rows:
            if create_time >= before:
                return
            if end_time is not None and end_time < before:
                yield seq
        after = rows[-1][0]


def _delete(
    transaction: WriteTransaction, record: Record, by: str, reason: str, now: int
) -> tuple[Deleted | None, int]:
    """Makes a tombstone of an evaluation that has ended; answers how many events were emptied.

    None when its last event is not in the table yet, or somebody else deleted it meanwhile.
    """
    connection, seq = transaction.connection, record.seq
    last = connection.execute(_LAST_EVENT, {"seq": seq}).fetchone()
    if last is None or int(Event.FromString(last[0]).state_changed.state) != record.state:
        return None, 0
    left = _left(connection, record, by, reason)
    if transaction.execute(_TOMBSTONE, {"key": seq, "expected": record.version}).rowcount != 1:
        return None, 0
    stored = record.run_spec_size + transaction.execute(_OUTPUT_BYTES, {"seq": seq}).scalar_one()
    stored += references.delete_all(transaction, seq)
    emptied = transaction.execute(_EMPTY_EVENTS, {"seq": seq, "marker": _MARKER}).rowcount
    for statement in _DELETE_OWNED:
        transaction.execute(statement, {"seq": seq})
    large_outputs.delete_all(transaction, seq)
    transaction.append_event(record.tenant, seq, record.attempt, now, Event(deleted=left).SerializeToString())
    transaction.count(record.tenant, record.state, -1)
    transaction.usage.stored(record.tenant, -stored)
    audit.record(
        transaction,
        time=now,
        tenant=record.tenant,
        actor=audit.STORAGE if by == BY_AGE else audit.by_key(by),
        action=audit.EVALUATION_DELETE,
        subject=evaluation_name(record.id),
        reason=left.reason,
        run_spec_sha256=record.run_spec_sha256.hex(),
        final_record_sha256=left.record_sha256.hex(),
        stdout_sha256=left.stdout_sha256.hex(),
        stderr_sha256=left.stderr_sha256.hex(),
    )
    return Deleted(record.tenant, left, now), emptied


def _batch_goes_on(connection: Connection, record: Record) -> bool:
    """Whether it is an item of a batch that has not ended. Not by the counts: those of this commit come at its end."""
    return record.batch is not None and connection.execute(_UNENDED_BATCH, {"batch": record.batch}).first() is not None


def _left(connection: Connection, record: Record, by: str, reason: str) -> EvaluationDeleted:
    blob = connection.execute(_RESULT, {"seq": record.seq}).scalar_one_or_none()
    end = pb.Evaluation() if blob is None else pb.Evaluation.FromString(blob)
    left = EvaluationDeleted(
        by=by, reason=reason[:MAX_REASON], state=pb.EvaluationState.ValueType(record.state), version=record.version + 1
    )
    if end.provenance.HasField("record"):
        left.record_sha256 = hashlib.sha256(end.provenance.record.payload).digest()
    left.stdout_sha256, left.stderr_sha256 = (
        outputs.sha256(connection, record.seq, record.attempt, int(stream))
        for stream in (pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR)
    )
    return left


def _deleted_before(connection: Connection, record: Record) -> Deleted | None:
    body, time = connection.execute(_LAST_EVENT, {"seq": record.seq}).one()
    event = Event.FromString(body)
    return Deleted(record.tenant, event.deleted, time) if event.HasField("deleted") else None
