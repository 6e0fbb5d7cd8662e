"""Kept output, by evaluation, attempt, stream and offset."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import closing

from sqlalchemy import and_, bindparam, func, select
from sqlalchemy.engine import Connection

from crucible_storage import models
from crucible_storage.prepared import Prepared

_ROW = models.output.c
_STREAM = and_(
    _ROW.evaluation_seq == bindparam("seq"),
    _ROW.attempt == bindparam("attempt"),
    _ROW.stream == bindparam("stream"),
)
_ALL = Prepared(select(_ROW.data).where(_STREAM).order_by(_ROW.offset))
_CHUNK_BEFORE = select(func.max(_ROW.offset)).where(_STREAM, _ROW.offset <= bindparam("start")).scalar_subquery()
_FROM = Prepared(select(_ROW.offset, _ROW.data).where(_STREAM, _ROW.offset >= _CHUNK_BEFORE).order_by(_ROW.offset))
_END = Prepared(select(func.max(_ROW.offset + _ROW.size)).where(_STREAM))


def read(connection: Connection, seq: int, attempt: int, stream: int, offset: int, limit: int) -> bytes:
    """Stored bytes of one stream from `offset`, at most `limit`; empty past their end."""
    parts: list[bytes] = []
    have = 0
    rows = _FROM.each(connection, {"seq": seq, "attempt": attempt, "stream": stream, "start": offset})
    with closing(rows):
        for begin, data in rows:
            part = data[max(offset - begin, 0) :]
            parts.append(part)
            have += len(part)
            if have >= limit:
                break
    return b"".join(parts)[:limit]


def stored_bytes(connection: Connection, seq: int, attempt: int, stream: int) -> int:
    """How many bytes of one stream are stored."""
    row = _END.first(connection, {"seq": seq, "attempt": attempt, "stream": stream})
    return 0 if row is None else row[0] or 0


def sha256(connection: Connection, seq: int, attempt: int, stream: int, more: Iterable[bytes] = ()) -> bytes:
    """The digest of all stored bytes of one stream, and of those that come after them."""
    digest = hashlib.sha256()
    for part in _stored(connection, seq, attempt, stream):
        digest.update(part)
    for part in more:
        digest.update(part)
    return digest.digest()


def _stored(connection: Connection, seq: int, attempt: int, stream: int) -> Iterator[bytes]:
    for row in _ALL.each(connection, {"seq": seq, "attempt": attempt, "stream": stream}):
        yield row[0]
