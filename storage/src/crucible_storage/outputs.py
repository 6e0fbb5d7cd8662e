"""Kept output, by evaluation, attempt, stream and offset."""

import hashlib
from collections.abc import Iterable, Iterator

from sqlalchemy import and_, bindparam, func, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_storage import models
from crucible_storage.lifecycle import Record
from crucible_storage.prepared import Prepared

_ROW = models.output.c
_STREAM = and_(
    _ROW.evaluation_seq == bindparam("seq"),
    _ROW.attempt == bindparam("attempt"),
    _ROW.stream == bindparam("stream"),
)
# Chunks of at most 64 KiB: a driver may hold a whole answer in memory. The first page is one, often all that is wanted.
_PAGE = 16
_CHUNK_BEFORE = select(func.max(_ROW.offset)).where(_STREAM, _ROW.offset <= bindparam("start")).scalar_subquery()
_FROM = Prepared(
    select(_ROW.offset, _ROW.data)
    .where(_STREAM, _ROW.offset >= _CHUNK_BEFORE)
    .order_by(_ROW.offset)
    .limit(bindparam("rows"))
)
_END = Prepared(select(func.max(_ROW.offset + _ROW.size)).where(_STREAM))


def read(connection: Connection, seq: int, attempt: int, stream: int, offset: int, limit: int) -> bytes:
    """Stored bytes of one stream from `offset`, at most `limit`; empty past their end."""
    parts: list[bytes] = []
    have = 0
    for part in _stored(connection, seq, attempt, stream, offset):
        parts.append(part)
        have += len(part)
        if have >= limit:
            break
    return b"".join(parts)[:limit]


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
        digest.update(part)
    for part in more:
        digest.update(part)
    return digest.digest()


def _stored(connection: Connection, seq: int, attempt: int, stream: int, offset: int) -> Iterator[bytes]:
    """Stored bytes from `offset`, chunk by chunk, read page by page."""
    key = {"seq": seq, "attempt": attempt, "stream": stream}
    page, more = 1, True
    while more:
        rows = _FROM.all(connection, key | {"start": offset, "rows": page})
        more, page = len(rows) == page, min(page * 4, _PAGE)
        for begin, data in rows:
            if part := data[max(offset - begin, 0) :]:
                yield part
                offset = begin + len(data)
