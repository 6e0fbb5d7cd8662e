"""Batches for the gateway: opened once, filled part by part, completed, looked at, cancelled."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, select, text, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import batch_pb2 as pb
from crucible_rpc.errors import AlreadyExistsError, NotFoundError, OutOfRangeError
from crucible_storage import audit, models, progress
from crucible_storage.batch_items import Added, Addition, Item, closed
from crucible_storage.batch_tasks import CANCEL, RELEASE
from crucible_storage.clock import Clock, timestamp
from crucible_storage.cursors import Cursors
from crucible_storage.database import Database
from crucible_storage.lifecycle import MAX_REASON, TERMINAL
from crucible_storage.names import batch_name, new_id
from crucible_storage.policy import Policy
from crucible_storage.transaction import WriteTransaction

BatchRow = Row[Any]

_ROW = models.batch.c
_ITEM = models.batch_item.c
_SELECT = select(models.batch)
_OWNED = _SELECT.where(_ROW.id == bindparam("id"), _ROW.tenant == bindparam("tenant"))
_LOCKED = _OWNED.with_for_update()
_BY_REQUEST = _SELECT.where(_ROW.tenant == bindparam("tenant"), _ROW.request_id == bindparam("request_id"))
_PAGE = (
    _SELECT.where(_ROW.tenant == bindparam("tenant"), _ROW.seq < bindparam("before"))
    .order_by(_ROW.seq.desc())
    .limit(bindparam("limit"))
)
_INSERT = text(
    """
    INSERT INTO batch (id, tenant, creator, request_id, header_sha256, labels, start_when_complete, items, create_time,
                       task, task_cursor)
    VALUES (:id, :tenant, :creator, :request_id, :header_sha256, :labels, :start_when_complete, 0, :create_time, 0, 0)
    ON CONFLICT (tenant, request_id) DO NOTHING
    """
)
_COUNTS = select(models.batch_count.c.kind, models.batch_count.c["count"].label("number")).where(
    models.batch_count.c.batch == bindparam("batch")
)
_LAST_END = (
    select(models.evaluation.c.end_time)
    .join(models.batch_item, _ITEM.evaluation_seq == models.evaluation.c.seq)
    .where(_ITEM.batch == bindparam("batch"), _ITEM.end_position.is_not(None))
    .order_by(_ITEM.end_position.desc())
    .limit(1)
)
_UNENDED = (
    select(models.evaluation.c.seq)
    .where(models.evaluation.c.batch == bindparam("batch"), models.evaluation.c.state < min(TERMINAL))
    .limit(1)
)
_NEWEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Header:
    """What is the same for a whole batch; `request_id` is never empty."""

    tenant: str
    creator: str
    request_id: str
    labels: Mapping[str, str]
    start_when_complete: bool

    @property
    def labels_json(self) -> str:
        """The labels in one text, the same for the same labels."""
        return json.dumps(dict(sorted(self.labels.items())))

    @property
    def sha256(self) -> bytes:
        """Of what makes two headers the same."""
        return hashlib.sha256(f"{self.start_when_complete}\0{self.labels_json}".encode()).digest()


class Batches:
    """The batches of all tenants; every call names one, and sees no other's.

    Args:
        database: where.
        policy: how much may wait.
        clock: for what storage records.
        cursors: page tokens.
        ids: makes a new id, a UUID.
    """

    def __init__(
        self, database: Database, policy: Policy, clock: Clock, cursors: Cursors, ids: Callable[[], str] = new_id
    ) -> None:
        self._database = database
        self._policy = policy
        self._clock = clock
        self._cursors = cursors
        self._ids = ids

    async def open(self, header: Header) -> pb.Batch:
        """Stores a batch without items, or answers the one that this request id made before.

        Raises:
            AlreadyExistsError: REQUEST_ID_REUSED, with another header.
        """
        values = {
            "id": self._ids(),
            "tenant": header.tenant,
            "creator": header.creator,
            "request_id": header.request_id,
            "header_sha256": header.sha256,
            "labels": header.labels_json,
            "start_when_complete": header.start_when_complete,
        }

        def run(transaction: WriteTransaction) -> str:
            now = self._clock.now()
            made = transaction.execute(_INSERT, values | {"create_time": now}).rowcount == 1
            which = {"tenant": header.tenant, "request_id": header.request_id}
            row = transaction.execute(_BY_REQUEST, which).one()
            if row.header_sha256 != header.sha256:
                name = batch_name(row.id)
                why = f"the request_id was used before for {name} with another header; use a new one"
                raise AlreadyExistsError("REQUEST_ID_REUSED", why, metadata={"batch": name})
            if made:
                actor, name = audit.by_key(row.creator), batch_name(row.id)
                audit.record(
                    transaction, time=now, tenant=row.tenant, actor=actor, action=audit.BATCH_CREATE, subject=name
                )
            return str(row.id)

        return await self.get(header.tenant, await self._database.write(run))

    async def add(self, tenant: str, batch_id: str, items: Sequence[Item]) -> int:
        """Stores those items that are not there yet; answers how many the batch has then.

        Raises:
            NotFoundError: BATCH_NOT_FOUND.
            CallError: see `Addition.add`. QUEUE_FULL and QUOTA_EXCEEDED also when only the first of them were stored.
        """

        def run(transaction: WriteTransaction) -> Added:
            row = _locked(transaction, tenant, batch_id)
            return Addition(transaction, row, self._policy, self._clock.now(), self._ids).add(items)

        added = await self._database.write(run)
        if added.refused is not None:
            raise added.refused
        return added.items

    async def complete(self, tenant: str, batch_id: str, items: int) -> pb.Batch:
        """The batch has all its items; `items` is how many that must be, 0 any number.

        Raises:
            NotFoundError: BATCH_NOT_FOUND.
            OutOfRangeError: BATCH_ITEMS_MISSING.
            FailedPreconditionError: BATCH_CLOSED, it was cancelled before it was complete.
        """

        def run(transaction: WriteTransaction) -> None:
            row = _locked(transaction, tenant, batch_id)
            if items and items != row.items:
                why = f"{row.items} items are stored, and the stream ended with {items}; send it again"
                raise OutOfRangeError("BATCH_ITEMS_MISSING", why, metadata={"batch": batch_name(row.id)})
            if row.complete_time is None:
                if row.cancel_time is not None:
                    raise closed(row)
                changes: dict[str, Any] = {"complete_time": self._clock.now()}
                if row.start_when_complete and row.items:
                    changes |= {"task": RELEASE, "task_cursor": 0}
                _change(transaction, row, changes)

        await self._database.write(run)
        return await self.get(tenant, batch_id)

    async def cancel(self, tenant: str, batch_id: str, by: str, reason: str) -> pb.Batch:
        """Stores the wish to end all items, which `batch_tasks` carries out; an ended batch is returned unchanged.

        Raises:
            NotFoundError: BATCH_NOT_FOUND.
        """

        def run(transaction: WriteTransaction) -> None:
            row = _locked(transaction, tenant, batch_id)
            # Not by the counts: those of this group of writes are stored at its end.
            unended = transaction.execute(_UNENDED, {"batch": row.id}).first() is not None
            if row.cancel_time is None and (unended or row.complete_time is None):
                now = self._clock.now()
                changes = {"cancel_by": by, "cancel_reason": reason[:MAX_REASON], "cancel_time": now}
                actor, name = audit.by_key(by), batch_name(row.id)
                audit.record(transaction, time=now, tenant=tenant, actor=actor, action=audit.BATCH_CANCEL, subject=name)
                _change(transaction, row, changes | {"task": CANCEL, "task_cursor": 0})

        await self._database.write(run)
        return await self.get(tenant, batch_id)

    async def get(self, tenant: str, batch_id: str) -> pb.Batch:
        """One batch as it is now.

        Raises:
            NotFoundError: BATCH_NOT_FOUND.
        """
        return await self._database.read(lambda connection: load(connection, tenant, batch_id))

    async def page(self, tenant: str, size: int, token: str) -> tuple[list[pb.Batch], str]:
        """At most `size` batches, newest first, and the token of the next page, empty on the last.

        Raises:
            InvalidArgumentError: INVALID_PAGE_TOKEN.
        """
        list_id = json.dumps(["batches", tenant])
        before = self._cursors.seq(list_id, token) if token else _NEWEST

        def run(connection: Connection) -> tuple[list[pb.Batch], int | None]:
            rows = connection.execute(_PAGE, {"tenant": tenant, "before": before, "limit": size + 1}).fetchall()
            return [view(connection, row) for row in rows[:size]], rows[size - 1].seq if len(rows) > size else None

        page, last = await self._database.read(run)
        return page, "" if last is None else self._cursors.token(list_id, last)


def load(connection: Connection, tenant: str, batch_id: str) -> pb.Batch:
    """One batch of this tenant.

    Raises:
        NotFoundError: BATCH_NOT_FOUND, also for another tenant's.
    """
    return view(connection, _found(connection.execute(_OWNED, {"tenant": tenant, "id": batch_id}).first(), batch_id))


def view(connection: Connection, row: BatchRow) -> pb.Batch:
    """A batch as callers see it, from what is committed."""
    counts = {one.kind: one.number for one in connection.execute(_COUNTS, {"batch": row.id})}
    state = _state(row, progress.unended(counts))
    batch = pb.Batch(
        name=batch_name(row.id),
        tenant=row.tenant,
        creator=row.creator,
        labels=json.loads(row.labels),
        start_when_complete=row.start_when_complete,
        state=state,
        items=row.items,
        progress=progress.message(counts),
        create_time=timestamp(row.create_time),
        cancel_by=row.cancel_by or "",
        cancel_reason=row.cancel_reason or "",
    )
    if row.complete_time is not None:
        batch.complete_time.CopyFrom(timestamp(row.complete_time))
    if row.cancel_time is not None:
        batch.cancel_time.CopyFrom(timestamp(row.cancel_time))
    if state == pb.BATCH_STATE_ENDED and row.items:
        batch.end_time.CopyFrom(timestamp(connection.execute(_LAST_END, {"batch": row.id}).scalar_one()))
    return batch


def _state(row: BatchRow, unended: int) -> pb.BatchState.ValueType:
    if row.complete_time is None and row.cancel_time is None:
        return pb.BATCH_STATE_OPEN
    if not unended:
        return pb.BATCH_STATE_ENDED
    return pb.BATCH_STATE_RUNNING if row.cancel_time is None else pb.BATCH_STATE_CANCELLING


def _locked(transaction: WriteTransaction, tenant: str, batch_id: str) -> BatchRow:
    return _found(transaction.execute(_LOCKED, {"tenant": tenant, "id": batch_id}).first(), batch_id)


def _found(row: BatchRow | None, batch_id: str) -> BatchRow:
    if row is None:
        raise NotFoundError("BATCH_NOT_FOUND", f"there is no batch {batch_name(batch_id)}")
    return row


def _change(transaction: WriteTransaction, row: BatchRow, changes: dict[str, Any]) -> None:
    transaction.execute(update(models.batch).where(_ROW.seq == row.seq).values(**changes))
    transaction.notices.batches.add(row.id)
    transaction.notices.batch_work |= "task" in changes
