"""The event log: read by position, alone or for one evaluation, and followed as it grows."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.event_pb2 import Event, OutputChunk
from crucible_storage import models, outputs, store
from crucible_storage.artifacts import reading
from crucible_storage.artifacts.blob_store import BlobStore
from crucible_storage.clock import timestamp
from crucible_storage.database import Database
from crucible_storage.hub import Hub, wait_for
from crucible_storage.moved_events import Moved, fill
from crucible_storage.names import evaluation_name
from crucible_storage.prepared import Prepared

MAX_EVENTS = 256
MAX_BATCH_BYTES = 1 << 20
FALLBACK_POLL = 5.0
COLLECT_SECONDS = 0.02
"""An event waits so long for those of further commits, which then travel in one message."""

_EVENT, _OUTPUT = models.event.c, models.output.c
_FIELDS = select(
    _EVENT.position,
    models.evaluation.c.id,
    _EVENT.tenant,
    _EVENT.time,
    _EVENT.attempt,
    _EVENT.body,
    _OUTPUT.stream,
    _OUTPUT.offset,
    _OUTPUT.data,
    _OUTPUT.size,
    _EVENT.evaluation_seq,
).select_from(
    models.event.join(models.evaluation, models.evaluation.c.seq == _EVENT.evaluation_seq).outerjoin(
        models.output, _OUTPUT.position == _EVENT.position
    )
)
_RANGE = (_EVENT.position > bindparam("after"), _EVENT.position <= bindparam("upto"))
_ALL = Prepared(_FIELDS.where(*_RANGE).order_by(_EVENT.position).limit(MAX_EVENTS))
_OF_ONE = _FIELDS.where(_EVENT.evaluation_seq == bindparam("seq"), *_RANGE)
_ONE = Prepared(_OF_ONE.order_by(_EVENT.position).limit(MAX_EVENTS))
_END = 1 << 62
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in order, and the position up to which every event that was asked for has been given."""

    events: list[Event]
    last_position: int


class EventLog:
    """Reads the log.

    Args:
        database: where events are.
        hub: tells of new ones.
        blob_store: has the bytes of large output.
    """

    def __init__(self, database: Database, hub: Hub, blob_store: BlobStore) -> None:
        self._database = database
        self._hub = hub
        self._store = blob_store

    async def tail(self, after: int) -> AsyncIterator[Batch]:
        """First an empty batch with the log's last position, then all events after `after` and those to come.

        Output whose object the artifact store has lost comes without its bytes: the log must not end there for all.

        Args:
            after: a position; -1: the last one at the time of the call.

        Raises:
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE, `after` is so old that large output has moved there.
        """
        last = await self._database.log_end()
        position = last if after < 0 else after
        yield Batch([], last)
        missed = False
        with self._hub.appended.subscribed() as appended:
            while True:
                appended.clear()
                batch = None if missed else self._hub.recent.after(position, MAX_EVENTS, MAX_BATCH_BYTES)
                # What is not in the log yet need not be looked for: that would be a read for every commit.
                if batch is None and position < self._database.last_position:
                    found = await self._database.read(_reader(_ALL, {"after": position, "upto": _END}))
                    for lost in await fill(self._store, found.moved):
                        _LOG.error("the artifact store has lost the output %s", lost.name)
                    batch = found.events
                missed = False
                if batch:
                    position = batch[-1].position
                    yield Batch(batch, position)
                    continue
                self._hub.check_open()
                await wait_for(appended, FALLBACK_POLL)
                missed = not appended.is_set()
                if not missed:
                    await asyncio.sleep(COLLECT_SECONDS)

    async def read(self, tenant: str, evaluation_id: str, after: int) -> AsyncIterator[Batch]:
        """One evaluation's events after a position, as they are stored now. The last batch reaches the log's end.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND, also when it is deleted meanwhile.
            DataLossError: ARTIFACT_DAMAGED.
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE.
        """
        end = await self._database.log_end()
        record = await self._database.read(lambda connection: store.load_owned(connection, tenant, evaluation_id))
        position = after
        while position < end:
            parameters = {"seq": record.seq, "after": position, "upto": end}
            page = await self._database.read(_reader(_ONE, parameters))
            if not page.events:
                break
            if any(event.WhichOneof("kind") in ("removed", "deleted") for event in page.events):
                raise store.not_found(evaluation_id)  # it was deleted meanwhile
            for lost in await fill(self._store, page.moved):
                await self._database.read(lambda connection: store.load_owned(connection, tenant, evaluation_id))
                raise reading.damaged(lost)
            position = page.events[-1].position
            yield Batch(page.events, position)
        yield Batch([], end)


@dataclass(frozen=True, slots=True)
class _Page:
    """Events as they are read, and those of them whose bytes are elsewhere."""

    events: list[Event]
    moved: list[Moved]


def _reader(query: Prepared, parameters: dict[str, int]) -> Callable[[Connection], _Page]:
    """Reads rows one by one and stops when the batch is large: a page of output can be 16 MiB."""

    def run(connection: Connection) -> _Page:
        page = _Page([], [])
        size = 0
        with closing(query.each(connection, parameters)) as rows:
            for *facts, length, seq in rows:
                event = _event(*facts)
                moved = event.HasField("output") and not event.output.data
                size += event.ByteSize() + (length if moved else 0)
                if page.events and size > MAX_BATCH_BYTES:
                    break
                page.events.append(event)
                if moved:
                    found = outputs.moved_to(connection, seq, event.attempt, int(event.output.stream))
                    page.moved.append(Moved(event, length, found))
        return page

    return run


def _event(
    position: int,
    evaluation_id: str,
    tenant: str,
    time: int,
    attempt: int,
    body: bytes,
    stream: int | None,
    offset: int,
    data: bytes,
) -> Event:
    event = Event.FromString(body)
    event.position = position
    event.evaluation = evaluation_name(evaluation_id)
    event.tenant = tenant
    event.time.CopyFrom(timestamp(time))
    event.attempt = attempt
    if stream is not None:
        event.output.CopyFrom(OutputChunk(stream=pb.OutputStream.ValueType(stream), offset=offset, data=data))
    return event
