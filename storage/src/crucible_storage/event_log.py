"""The event log: read by position, alone or for one evaluation, and followed as it grows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.event_pb2 import Event, OutputChunk
from crucible_storage import models, store
from crucible_storage.clock import timestamp
from crucible_storage.database import Database
from crucible_storage.hub import Hub, wait_for
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


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in order, and the position up to which every event that was asked for has been given."""

    events: list[Event]
    last_position: int


class EventLog:
    """Reads the log."""

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub

    async def tail(self, after: int) -> AsyncIterator[Batch]:
        """First an empty batch with the log's last position, then all events after `after` and those to come.

        Args:
            after: a position; -1: the last one at the time of the call.
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
                    batch = await self._database.read(_reader(_ALL, {"after": position, "upto": _END}))
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
        """
        end = await self._database.log_end()
        record = await self._database.read(lambda connection: store.load_owned(connection, tenant, evaluation_id))
        position = after
        while position < end:
            parameters = {"seq": record.seq, "after": position, "upto": end}
            batch = await self._database.read(_reader(_ONE, parameters))
            if not batch:
                break
            if any(event.WhichOneof("kind") in ("removed", "deleted") for event in batch):
                raise store.not_found(evaluation_id)  # it was deleted meanwhile
            position = batch[-1].position
            yield Batch(batch, position)
        yield Batch([], end)


def _reader(query: Prepared, parameters: dict[str, int]) -> Callable[[Connection], list[Event]]:
    """Reads rows one by one and stops when the batch is large: a page of output can be 16 MiB."""

    def run(connection: Connection) -> list[Event]:
        events: list[Event] = []
        size = 0
        with closing(query.each(connection, parameters)) as rows:
            for row in rows:
                event = _event(*row)
                size += event.ByteSize()
                if events and size > MAX_BATCH_BYTES:
                    break
                events.append(event)
        return events

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
