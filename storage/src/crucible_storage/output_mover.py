"""Moves large output of evaluations that have ended from the database to the artifact store.

First the object is stored and referred to, then read back, and only when it has the SHA-256 of what the database has
are the chunks emptied, some at a time. Whatever ends in between is gone on with at the next look; meanwhile the chunks
hold the bytes. Several processes may do so at once: what one does twice ends as if it was done once.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial

from google.protobuf.message import DecodeError
from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_rpc import logs
from crucible_rpc.errors import DataLossError
from crucible_storage import large_outputs, models, outputs, store
from crucible_storage.artifacts import blobs, reading
from crucible_storage.artifacts.blob_store import BlobMissingError, BlobStore
from crucible_storage.artifacts.blobs import Blob
from crucible_storage.artifacts.objects import Objects
from crucible_storage.artifacts.reading import Object
from crucible_storage.clock import Clock, micros
from crucible_storage.database import Database
from crucible_storage.large_outputs import Large
from crucible_storage.lifecycle import Record
from crucible_storage.names import run_id
from crucible_storage.regularly import regularly
from crucible_storage.transaction import WriteTransaction

INTERVAL = 60.0
REST = timedelta(minutes=5)
"""After the end: what has just ended is what is read most, and those who follow the log have it then."""

_PAGE = 64
_PART = 1 << 20
_RESULT = select(models.result.c.result).where(models.result.c.evaluation_seq == bindparam("seq"))
_LOG = logging.getLogger(__name__)


class _SettledError(Exception):
    """There is nothing left to move: another process did it, or the evaluation was deleted."""


class OutputMover:
    """Looks once a minute.

    Args:
        database: where output is.
        blob_store: where it goes.
        objects: stores it there.
        clock: says what has ended long enough ago.
        above: streams of more bytes are moved.
        moved: called with the size of each stream that was moved.
        rest: see `REST`.
    """

    def __init__(
        self,
        database: Database,
        blob_store: BlobStore,
        objects: Objects,
        clock: Clock,
        above: int,
        moved: Callable[[int], None] = lambda _: None,
        rest: timedelta = REST,
    ) -> None:
        self._database = database
        self._store = blob_store
        self._objects = objects
        self._clock = clock
        self._above = above
        self._moved = moved
        self._rest = rest

    async def run(self) -> None:
        """Moves until cancelled."""
        await regularly(INTERVAL, self.look, "large output stays in the database for now")

    async def look(self) -> int:
        """Moves all that can be moved now; answers how many streams. What is damaged is logged and passed over.

        Raises:
            UnavailableError: the store or the database cannot be used now.
        """
        moved, after = 0, None
        while page := await self._database.read(lambda connection: self._page(connection, after)):  # noqa: B023
            after = page[-1]
            random.shuffle(page)  # several processes do not all begin with the same one
            for one in page:
                moved += await self._settled(one)
        return moved

    def _page(self, connection: Connection, after: Large | None) -> list[Large]:
        ended = self._clock.now() - micros(self._rest)
        return large_outputs.to_move(connection, self._above, ended, after, _PAGE)

    async def _settled(self, one: Large) -> bool:
        try:
            await self._move(one)
        except _SettledError:
            return False
        except (DataLossError, DecodeError) as error:
            fields = logs.fields(run=run_id(one.id, one.attempt))
            _LOG.error("large output cannot be moved: %s; run `crucible storage check`", error, extra=fields)
            return False
        self._moved(one.size)
        return True

    async def _move(self, one: Large) -> None:
        content = await self._database.read(lambda connection: _content(connection, self._database, one))
        if content is not None:  # else an earlier look had come further
            await self._store_whole(content, one)
        start: int | None = 0
        while start is not None:
            start = await self._database.write(partial(large_outputs.empty, one=one, start=start))

    async def _store_whole(self, content: "_Stream", one: Large) -> None:
        """Has the stream refer to an object that was read back and has its bytes."""
        for damaged in (False, True):  # there may have been one that was damaged since: it is mended
            same = await self._database.write(content.begin)
            await self._objects.store(content, content.hold, same, damaged=damaged)
            found = await self._database.read(lambda connection: large_outputs.place(connection, *one.key))
            if found is None:
                raise _SettledError
            if await self._is_whole(found):
                return
        raise DataLossError("ARTIFACT_DAMAGED", "the artifact store does not give back what was just stored")

    async def _is_whole(self, found: Object) -> bool:
        """Whether an object has the bytes that it should have; read from its beginning to its end."""
        try:
            async for _ in reading.parts(self._store, found, 0, found.size, _PART, _PART):
                pass
        except (BlobMissingError, DataLossError):
            return False
        return True


class _Stream:
    """The `Content` of one stream: its bytes in the database; and the row that is to refer to their object."""

    def __init__(self, database: Database, one: Large, sha256: bytes, beginning: bytes) -> None:
        self.tenant = one.tenant
        self.size = one.size
        self.sha256 = sha256
        self._database = database
        self._one = one
        self._beginning = beginning

    async def parts(self) -> AsyncIterator[bytes]:
        """See `Content`."""
        one, offset, digest = self._one, 0, hashlib.sha256()
        while offset < one.size:
            data = await self._database.read(
                lambda connection: outputs.read(connection, *one.key, offset, _PART)  # noqa: B023
            )
            if isinstance(data, Object) or not data:
                raise _SettledError
            await asyncio.to_thread(digest.update, data)
            offset += len(data)
            yield data
        if (offset, digest.digest()) != (one.size, self.sha256):
            raise DataLossError("DATABASE_DAMAGED", "the database does not give the same bytes twice")

    def begin(self, transaction: WriteTransaction) -> Blob | None:
        """A blob that should have these bytes."""
        self.hold(transaction)
        return blobs.same(transaction, self.tenant, self.sha256)

    def hold(self, transaction: WriteTransaction) -> Callable[[Blob], None]:
        """See `Hold`."""
        record = store.load_by_seq(transaction.connection, self._one.seq, to_change=True)
        if not record.terminal or large_outputs.is_moved(transaction, self._one):
            raise _SettledError
        return lambda blob: large_outputs.refer(transaction, self._one, blob.seq, self._beginning)


def _content(connection: Connection, database: Database, one: Large) -> _Stream | None:
    """What is to be moved, once it is known to be what its executor signed; None: it is in the store, for sure.

    Raises:
        DataLossError: DATABASE_DAMAGED.
    """
    record = store.load_by_seq(connection, one.seq)
    if not record.terminal:
        raise _SettledError
    if isinstance(outputs.read(connection, *one.key, 0, 1), Object):
        return None
    sha256 = outputs.sha256(connection, *one.key)
    if outputs.stored_bytes(connection, *one.key) != one.size or _signed(connection, record, one) not in (None, sha256):
        raise DataLossError("DATABASE_DAMAGED", "the stored output is not what was kept at the end of its attempt")
    return _Stream(database, one, sha256, outputs.preview(connection, *one.key))


def _signed(connection: Connection, record: Record, one: Large) -> bytes | None:
    """The digest in the signed record of the stream's attempt; None: there is no record."""
    blob = connection.execute(_RESULT, {"seq": one.seq}).scalar_one_or_none()
    if blob is None or record.attempt != one.attempt:
        return None
    end = pb.Evaluation.FromString(blob)
    if not end.provenance.HasField("record"):
        return None
    return (end.stdout if one.stream == pb.OUTPUT_STREAM_STDOUT else end.stderr).sha256
