"""What is done to the items of batches in the background, part by part: starts, cancels, and what dependencies ask for.

What is to be done is in the database, so it goes on after a restart: `batch.task` of a batch whose held items may start
or whose items are to be ended, and `batch_settlement` for items that ended while others waited for them. Each part is
one transaction, so that nothing else waits for long however large a batch is.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, delete, select, update

from crucible_rpc.errors import AbortedError, CallError
from crucible_storage import models, progress, store
from crucible_storage.clock import Clock
from crucible_storage.database import Database
from crucible_storage.hub import Hub, wait_for
from crucible_storage.lifecycle import HELD, QUEUED, SUCCEEDED, Record
from crucible_storage.names import evaluation_name
from crucible_storage.transaction import WriteTransaction

RELEASE = 1
"""The batch is complete: its items need not wait for that any more. The cursor is the number of the next item."""
CANCEL = 2
"""Its items are to be ended."""
PART = 200
FALLBACK_POLL = 5.0
_RETRY_PAUSE = 1.0
_LOG = logging.getLogger(__name__)

_BATCH, _ITEM, _ROW = models.batch.c, models.batch_item.c, models.evaluation.c
_NEEDS, _SETTLING = models.batch_dependency.c, models.batch_settlement.c
_NEXT_TASK = select(models.batch).where(_BATCH.task != 0).order_by(_BATCH.seq).limit(1).with_for_update()
_STAND = (
    update(models.batch)
    .where(_BATCH.seq == bindparam("key"))
    .values(task=bindparam("new_task"), task_cursor=bindparam("new_cursor"))
)
_TO_CANCEL = (
    select(_ROW.seq)
    .where(_ROW.batch == bindparam("batch"), _ROW.state.in_((QUEUED, *sorted(HELD))), _ROW.cancel_time.is_(None))
    .order_by(_ROW.seq)
    .limit(PART)
    .with_for_update()
)
_WAITING = (
    select(_ROW.seq, _ROW.tenant, _ROW.batch, _ROW.blocked, _ITEM.run_anyway)
    .join(models.batch_item, _ITEM.evaluation_seq == _ROW.seq)
    .where(_ROW.state == QUEUED, _ROW.blocked > 0)
    .order_by(_ROW.seq)
    .with_for_update(of=models.evaluation)
)
_WAITING_NUMBERS = _WAITING.where(
    _ITEM.batch == bindparam("batch"), _ITEM.number >= bindparam("first"), _ITEM.number < bindparam("end")
)
_WAITING_SEQS = _WAITING.where(_ROW.seq.in_(bindparam("seqs", expanding=True)))
_UNBLOCK = update(models.evaluation).where(_ROW.seq == bindparam("key")).values(blocked=bindparam("left"))
_NEXT_SETTLEMENT = (
    select(_SETTLING.evaluation_seq, _ROW.id, _ROW.state, _BATCH.cancel_time)
    .join(models.evaluation, _ROW.seq == _SETTLING.evaluation_seq)
    .join(models.batch, _BATCH.id == _ROW.batch)
    .order_by(_SETTLING.evaluation_seq)
    .limit(1)
    .with_for_update(of=models.batch_settlement)
)
_WAIT_FOR = (
    select(_NEEDS.evaluation_seq)
    .where(_NEEDS.needed_seq == bindparam("seq"))
    .order_by(_NEEDS.evaluation_seq)
    .limit(bindparam("limit"))
)
_TOLD = delete(models.batch_dependency).where(
    _NEEDS.needed_seq == bindparam("seq"), _NEEDS.evaluation_seq.in_(bindparam("seqs", expanding=True))
)
_SETTLED = delete(models.batch_settlement).where(_SETTLING.evaluation_seq == bindparam("seq"))


class BatchTasks:
    """Does what is to be done, for as long as `run` runs.

    Args:
        database: where.
        hub: says when there may be something to do.
        clock: for what storage records.
    """

    def __init__(self, database: Database, hub: Hub, clock: Clock) -> None:
        self._database = database
        self._hub = hub
        self._clock = clock

    async def run(self) -> None:
        """Works until cancelled."""
        with self._hub.batch_work.subscribed() as wanted:
            while True:
                wanted.clear()
                try:
                    if not await self.step():
                        await wait_for(wanted, FALLBACK_POLL)
                except CallError as error:
                    _LOG.warning("batches could not be worked on: %s", error)
                    await asyncio.sleep(_RETRY_PAUSE)
                except Exception:
                    _LOG.exception("batches could not be worked on; trying again")  # else dependents wait for ever
                    await asyncio.sleep(_RETRY_PAUSE)

    async def step(self) -> bool:
        """Does one part of what there is; False when there was nothing."""
        if not await self._database.read(_something):
            return False
        return await self._database.write(lambda transaction: _Part(transaction, self._clock.now()).do())


def _something(connection: Any) -> bool:
    """Whether there is something to do: asked of a reader, so that an idle storage writes nothing."""
    return any(
        connection.execute(query).first() is not None
        for query in (select(_BATCH.seq).where(_BATCH.task != 0).limit(1), select(_SETTLING.evaluation_seq).limit(1))
    )


class _Part:
    """One transaction's worth."""

    def __init__(self, transaction: WriteTransaction, now: int) -> None:
        self._transaction = transaction
        self._now = now

    def do(self) -> bool:
        batch = self._transaction.execute(_NEXT_TASK).first()
        if batch is not None and batch.task == CANCEL:
            self._cancel(batch)
        elif batch is not None:
            self._release(batch)
        return self._settle() or batch is not None

    def _cancel(self, batch: Row[Any]) -> None:
        seqs = [row.seq for row in self._transaction.execute(_TO_CANCEL, {"batch": batch.id}).fetchall()]
        left = len(seqs) == PART
        for seq in seqs:
            try:
                with self._transaction.savepoint():
                    self._cancel_one(batch, store.load_by_seq(self._transaction.connection, seq, to_change=True))
            except AbortedError:  # another storage process changed it in this moment
                left = True
        if not left:
            self._transaction.execute(_STAND, {"key": batch.seq, "new_task": 0, "new_cursor": 0})

    def _cancel_one(self, batch: Row[Any], record: Record) -> None:
        before = store.Before(record)
        record.want_cancel(batch.cancel_by or "", batch.cancel_reason or "", self._now)
        store.save(self._transaction, record, before, self._now)

    def _release(self, batch: Row[Any]) -> None:
        first, end = batch.task_cursor, batch.task_cursor + PART
        which = {"batch": batch.id, "first": first, "end": end}
        self._unblock(self._transaction.execute(_WAITING_NUMBERS, which).fetchall())
        task = RELEASE if end < batch.items else 0
        self._transaction.execute(_STAND, {"key": batch.seq, "new_task": task, "new_cursor": end if task else 0})

    def _settle(self) -> bool:
        """Tells at most `PART` items of ends; a whole chain of skipped ones where there is room for it."""
        room, some = PART, False
        while room > 0 and (ended := self._transaction.execute(_NEXT_SETTLEMENT).first()) is not None:
            some = True
            which = {"seq": ended.evaluation_seq}
            seqs = [row[0] for row in self._transaction.execute(_WAIT_FOR, which | {"limit": room})]
            if seqs:
                self._tell(ended, seqs)
                self._transaction.execute(_TOLD, which | {"seqs": seqs})
            if len(seqs) < room:
                self._transaction.execute(_SETTLED, which)
            room -= len(seqs) + 1
        return some

    def _tell(self, ended: Row[Any], seqs: Sequence[int]) -> None:
        if ended.cancel_time is not None:
            return  # all of the batch are being ended: `_cancel` does it, with the caller's reason
        waiting = self._transaction.execute(_WAITING_SEQS, {"seqs": seqs}).fetchall()
        if ended.state == SUCCEEDED:
            self._unblock(waiting)
            return
        self._unblock([one for one in waiting if one.run_anyway])
        for one in waiting:
            if not one.run_anyway:
                record = store.load_by_seq(self._transaction.connection, one.seq, to_change=True)
                before = store.Before(record)
                record.skip(evaluation_name(ended.id), self._now)
                store.save(self._transaction, record, before, self._now)

    def _unblock(self, waiting: Sequence[Row[Any]]) -> None:
        """Each waits for one thing less; what waits for nothing more may be leased."""
        if not waiting:
            return
        self._transaction.execute(_UNBLOCK, [{"key": one.seq, "left": one.blocked - 1} for one in waiting])
        for one in waiting:
            if one.blocked == 1:
                self._transaction.count_batch(one.batch, progress.WAITING, one.tenant, -1)
                self._transaction.count_batch(one.batch, QUEUED, one.tenant, 1)
                self._transaction.notices.work = True
