"""The results of a batch, as they end or in the order of its items, and how far it is."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import batch_pb2 as pb
from crucible_rpc.errors import ResourceExhaustedError
from crucible_storage import batches, models, store, views
from crucible_storage.database import Database
from crucible_storage.hub import Hub, wait_for
from crucible_storage.lifecycle import DELETED

MAX_WATCHERS = 256
PAGE = 50
FALLBACK_POLL = 1.0
PAUSE = 0.05
PROGRESS_INTERVAL = 1.0

_ITEM, _EVALUATION = models.batch_item.c, models.evaluation.c
_FIELDS = (
    select(_ITEM.number, _ITEM.key, _ITEM.evaluation_seq, _ITEM.end_position)
    .join(models.evaluation, _EVALUATION.seq == _ITEM.evaluation_seq)
    .where(_ITEM.batch == bindparam("batch"), _EVALUATION.state != DELETED)
)
_BY_END = _FIELDS.where(_ITEM.end_position > bindparam("after")).order_by(_ITEM.end_position).limit(PAGE)
_BY_NUMBER = _FIELDS.where(_ITEM.number >= bindparam("after")).order_by(_ITEM.number).limit(PAGE)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: the results after the cursor, and the batch in the same moment."""

    batch: pb.Batch
    results: Sequence[pb.BatchResult]


class BatchWatches:
    """Serves watchers, at most `MAX_WATCHERS`."""

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub
        self._watchers = 0

    async def watch(
        self, tenant: str, batch_id: str, order: int, after: int
    ) -> AsyncIterator[pb.BatchResult | pb.Batch]:
        """Results after a cursor and how far the batch is, until it has ended and all were given but deleted ones.

        Args:
            tenant: whose it must be.
            batch_id: which.
            order: a `BatchOrder`.
            after: a result's `cursor` in that order; 0: from the beginning.

        Raises:
            NotFoundError: BATCH_NOT_FOUND.
            ResourceExhaustedError: TOO_MANY_WATCHERS.
        """
        if self._watchers >= MAX_WATCHERS:
            text = f"{MAX_WATCHERS} batches are being watched, which is as many as may be; try again later"
            raise ResourceExhaustedError("TOO_MANY_WATCHERS", text, retry_after=timedelta(seconds=5))
        self._watchers += 1
        try:
            with self._hub.changes_of(batch_id) as changed:
                async for one in self._follow(changed, tenant, batch_id, order, after):
                    yield one
        finally:
            self._watchers -= 1

    async def _follow(
        self, changed: asyncio.Event, tenant: str, batch_id: str, order: int, after: int
    ) -> AsyncIterator[pb.BatchResult | pb.Batch]:
        clock = asyncio.get_running_loop().time
        told, told_at = None, 0.0
        while True:
            changed.clear()
            look = await self._database.read(lambda connection: look_at(connection, tenant, batch_id, order, after))  # noqa: B023
            for result in look.results:
                yield result
                after = result.cursor
            ended = look.batch.state == pb.BATCH_STATE_ENDED and not look.results
            if ended or told is None or (look.batch != told and clock() >= told_at + PROGRESS_INTERVAL):
                told, told_at = look.batch, clock()
                yield look.batch
            if ended:
                return
            self._hub.check_open()
            # What has ended changes no more: the next look finds the rest, or nothing.
            if len(look.results) < PAGE and look.batch.state != pb.BATCH_STATE_ENDED:
                left = FALLBACK_POLL if look.batch == told else max(0.0, told_at + PROGRESS_INTERVAL - clock())
                await asyncio.sleep(PAUSE)  # many ends are one look
                await wait_for(changed, left)


def look_at(connection: Connection, tenant: str, batch_id: str, order: int, after: int) -> Look:
    """Reads the next results and the batch.

    Raises:
        NotFoundError: BATCH_NOT_FOUND.
    """
    batch = batches.load(connection, tenant, batch_id)
    by_number = order == pb.BATCH_ORDER_ITEM
    rows = connection.execute(_BY_NUMBER if by_number else _BY_END, {"batch": batch_id, "after": after}).fetchall()
    ended = list(itertools.takewhile(lambda row: row.end_position is not None, rows))
    records = [store.load_by_seq(connection, row.evaluation_seq) for row in ended]
    results = []
    for row, record, evaluation in zip(ended, records, views.listed(connection, records), strict=True):
        views.add_previews(connection, record, evaluation)
        cursor = row.number + 1 if by_number else row.end_position
        results.append(pb.BatchResult(index=row.number, key=row.key, evaluation=evaluation, cursor=cursor))
    return Look(batch, results)
