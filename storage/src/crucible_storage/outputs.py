"""Kept output, by evaluation, attempt, stream and offset.

Its bytes are in chunks in the database. Chunks of large output are emptied when the artifact store has an object with
the whole stream: see `large_outputs`.
"""

import hashlib
from collections.abc import Iterable, Iterator

from sqlalchemy import and_, bindparam, func, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_rpc.errors import DataLossError
from crucible_storage import large_outputs, models
from crucible_storage.artifacts.reading import Object
from crucible_storage.lifecycle import Record
from crucible_storage.prepared import Prepared

_ROW = models.output.c
_STREAM = and_(
    _ROW.evaluation_seq == bindparam("seq"),
    _ROW.attempt == bindparam("attempt"),
    _ROW.stream == bindparam("stream"),
)
MAX_PREVIEW = 4 << 10
# Chunks of at most 64 KiB: a driver may hold a whole answer in memory. The first page is one, often all that is wanted.
_PAGE = 16
_CHUNK_BEFORE = select(func.max(_ROW.offset)).where(_STREAM, _ROW.offset <= bindparam("start")).scalar_subquery()
_FROM = Prepared(
    select(_ROW.offset, _ROW.size, _ROW.data)
    .where(_STREAM, _ROW.offset >= _CHUNK_BEFORE)
    .order_by(_ROW.offset)
    .limit(bindparam("rows"))
)
_END = Prepared(select(func.max(_ROW.offset + _ROW.size)).where(_STREAM))


def read(connection: Connection, seq: int, attempt: int, stream: int, offset: int, limit: int) -> bytes | Object:
    """Stored bytes of one stream from `offset`, at most `limit`; empty past their end.

    Or, where those at `offset` were moved, the object that has all bytes of the stream.
    """
    parts: list[bytes] = []
    have = 0
    for part in _stored(connection, seq, attempt, stream, offset):
        if part is None:
            if have:
                break
            return moved_to(connection, seq, attempt, stream)
        parts.append(part)
        have += len(part)
        if have >= limit:
            break
    return b"".join(parts)[:limit]


def preview(connection: Connection, seq: int, attempt: int, stream: int) -> bytes:
    """The first bytes of one stream, at most `MAX_PREVIEW`; always in the database."""
    found = read(connection, seq, attempt, stream, 0, MAX_PREVIEW)
    return found if isinstance(found, bytes) else large_outputs.preview(connection, seq, attempt, stream)


def moved_to(connection: Connection, seq: int, attempt: int, stream: int) -> Object:
    """Where the bytes of one stream are, whose chunks are empty.

    Raises:
        DataLossError: DATABASE_DAMAGED.
    """
    found = large_outputs.place(connection, seq, attempt, stream)
    if found is None:
        text = "output is neither in the database nor in the artifact store; run `crucible storage check`"
        raise DataLossError("DATABASE_DAMAGED", text)
    return found


def stored_bytes(connection: Connection, seq: int, attempt: int, stream: int) -> int:
    """How many bytes of one stream are stored."""
    row = _END.first(connection, {"seq": seq, "attempt": attempt, "stream": stream})
    return 0 if row is None else row[0] or 0


def as_of_the_attempt_before(connection: Connection, record: Record) -> None:
    """Gives a record the lengths of what its attempt before the latest wrote: the latest is about to be refused."""
    seq, earlier = record.seq, record.attempt - 1
    record.stdout_bytes = stored_bytes(connection, seq, earlier, pb.OUTPUT_STREAM_STDOUT)
    record.stderr_bytes = stored_bytes(connection, seq, earlier, pb.OUTPUT_STREAM_STDERR)


def sha256(connection: Connection, seq: int, attempt: int, stream: int, more: Iterable[bytes] = ()) -> bytes:
    """The digest of all stored bytes of one stream, and of those that come after them."""
    digest = hashlib.sha256()
    for part in _stored(connection, seq, attempt, stream, 0):
        if part is None:
            return moved_to(connection, seq, attempt, stream).sha256
        digest.update(part)
    for part in more:
        digest.update(part)
    return digest.digest()


def _stored(connection: Connection, seq: int, attempt: int, stream: int, offset: int) -> Iterator[bytes | None]:
    """Stored bytes from `offset`, chunk by chunk, read page by page; None where they were moved, which ends it."""
    key = {"seq": seq, "attempt": attempt, "stream": stream}
    page, more = 1, True
    while more:
        rows = _FROM.all(connection, key | {"start": offset, "rows": page})
        more, page = len(rows) == page, min(page * 4, _PAGE)
        for begin, size, data in rows:
            if begin + size > offset:
                yield data[max(offset - begin, 0) :] or None
                offset = begin + size
            if not data:
                return
