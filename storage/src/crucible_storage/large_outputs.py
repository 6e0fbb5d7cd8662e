"""Large output: noted when its attempt ends, for it is to be moved to the artifact store; every statement on its table.

The bytes of a stream are in the chunks of `output` until `output_mover` has stored them as an object. From then on both
have them, until the chunks are emptied; who reads takes what a chunk has, and the object's bytes where it has none.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, insert, literal_column, select, tuple_, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_storage import models
from crucible_storage.artifact_tables import MOVED, STORED, WAITING
from crucible_storage.artifacts.reading import Object
from crucible_storage.lifecycle import TERMINAL, Record
from crucible_storage.policy import LEAST_INLINE
from crucible_storage.prepared import Prepared
from crucible_storage.transaction import WriteTransaction

_CHUNKS_AT_ONCE = 256
_ROW, _BLOB, _CHUNK, _EVALUATION = models.large_output.c, models.blob.c, models.output.c, models.evaluation.c
_INSERT = Prepared(insert(models.large_output))
_KEY = and_(
    _ROW.evaluation_seq == bindparam("seq"), _ROW.attempt == bindparam("in_attempt"), _ROW.stream == bindparam("of")
)
_PLACE = Prepared(
    select(_BLOB.name, _BLOB.size, _BLOB.sha256)
    .select_from(models.large_output.join(models.blob, _BLOB.seq == _ROW.blob_seq))
    .where(_KEY)
)
_PREVIEW = Prepared(select(_ROW.preview).where(_KEY))
_ORDER = (_ROW.size, _ROW.evaluation_seq, _ROW.attempt, _ROW.stream)
_TO_MOVE = (
    select(_ROW.evaluation_seq, _ROW.attempt, _ROW.stream, _EVALUATION.id, _ROW.tenant, _ROW.size)
    .select_from(models.large_output.join(models.evaluation, _EVALUATION.seq == _ROW.evaluation_seq))
    .where(
        _ROW.state != literal_column(str(MOVED)),  # as the index has it: a parameter would hide it from PostgreSQL
        tuple_(*_ORDER) > tuple_(bindparam("size"), bindparam("seq"), bindparam("in_attempt"), bindparam("of")),
        _EVALUATION.state >= min(TERMINAL),  # what was deleted has none
        _EVALUATION.end_time <= bindparam("ended"),
    )
    .order_by(*_ORDER)
    .limit(bindparam("rows"))
)
_REFERENCE = select(_ROW.state, _ROW.blob_seq).where(_KEY)
_REFER = (
    update(models.large_output)
    .where(_KEY)
    .values(state=STORED, blob_seq=bindparam("new_blob"), preview=bindparam("beginning"))
)
_CHUNKS = (
    select(_CHUNK.position, _CHUNK.offset)
    .where(
        _CHUNK.evaluation_seq == bindparam("seq"),
        _CHUNK.attempt == bindparam("in_attempt"),
        _CHUNK.stream == bindparam("of"),
        _CHUNK.offset >= bindparam("start"),
    )
    .order_by(_CHUNK.offset)
    .limit(_CHUNKS_AT_ONCE)
)
_EMPTY = (
    update(models.output)
    .where(_CHUNK.position.in_(bindparam("positions", expanding=True)), func.length(_CHUNK.data) > 0)
    .values(data=b"")
)
_MOVED = update(models.large_output).where(_KEY, _ROW.state == STORED).values(state=MOVED)
_RELEASE = update(models.blob).where(_BLOB.seq == bindparam("key")).values(released=1)
_RELEASE_ALL = (
    update(models.blob)
    .where(_BLOB.seq.in_(select(_ROW.blob_seq).where(_ROW.evaluation_seq == bindparam("owner"))))
    .values(released=1)
)
_DELETE_ALL = delete(models.large_output).where(_ROW.evaluation_seq == bindparam("owner"))


@dataclass(frozen=True, slots=True)
class Large:
    """A stream that is to be moved: of which evaluation and attempt, whose, and how many bytes it has."""

    seq: int
    attempt: int
    stream: int
    id: str
    tenant: str
    size: int

    @property
    def key(self) -> tuple[int, int, int]:
        """The number of its evaluation, its attempt and its stream."""
        return self.seq, self.attempt, self.stream


def note(transaction: WriteTransaction, record: Record) -> None:
    """The record's attempt ends: notes what it wrote, where that is much."""
    for stream, size in (
        (pb.OUTPUT_STREAM_STDOUT, record.stdout_bytes),
        (pb.OUTPUT_STREAM_STDERR, record.stderr_bytes),
    ):
        if size > LEAST_INLINE:
            row = {"evaluation_seq": record.seq, "attempt": record.attempt, "stream": int(stream), "size": size}
            rest: dict[str, Any] = {"tenant": record.tenant, "state": WAITING, "blob_seq": None, "preview": None}
            _INSERT.changes(transaction.connection, row | rest)


def place(connection: Connection, seq: int, attempt: int, stream: int) -> Object | None:
    """The object that has the bytes of a stream; None: there is none."""
    row = _PLACE.first(connection, _key(seq, attempt, stream))
    return None if row is None else Object(*row)


def preview(connection: Connection, seq: int, attempt: int, stream: int) -> bytes:
    """The first bytes of a stream that has an object."""
    row = _PREVIEW.first(connection, _key(seq, attempt, stream))
    return b"" if row is None else row[0] or b""


def to_move(connection: Connection, above: int, ended: int, after: Large | None, rows: int) -> list[Large]:
    """Some of those that are to be moved, smallest first.

    Args:
        connection: of a reader.
        above: only streams of more bytes.
        ended: and of evaluations that ended at this time (microseconds since 1970) or before.
        after: goes on behind this one.
        rows: at most so many.
    """
    begin = _key(1 << 62, 0, 0) | {"size": above} if after is None else _key(*after.key) | {"size": after.size}
    return [Large(*row) for row in connection.execute(_TO_MOVE, begin | {"ended": ended, "rows": rows})]


def is_moved(transaction: WriteTransaction, one: Large) -> bool:
    """Whether nothing is left to be done: all is moved, or deleted."""
    row = transaction.execute(_REFERENCE, _key(*one.key)).first()
    return row is None or row.state == MOVED


def refer(transaction: WriteTransaction, one: Large, blob: int, beginning: bytes) -> None:
    """Has a stream refer to a blob that is PRESENT and whose row is locked."""
    before = transaction.execute(_REFERENCE, _key(*one.key)).one().blob_seq
    transaction.execute(_REFER, _key(*one.key) | {"new_blob": blob, "beginning": beginning})
    if before not in (None, blob):
        transaction.execute(_RELEASE, {"key": before})


def empty(transaction: WriteTransaction, one: Large, start: int) -> int | None:
    """Empties some chunks of a stream that has an object, from an offset on; answers where to go on, None: nowhere."""
    chunks = transaction.execute(_CHUNKS, _key(*one.key) | {"start": start}).fetchall()
    if chunks:
        transaction.execute(_EMPTY, {"positions": [chunk.position for chunk in chunks]})
    if len(chunks) == _CHUNKS_AT_ONCE:
        return int(chunks[-1].offset) + 1
    transaction.execute(_MOVED, _key(*one.key))
    return None


def delete_all(transaction: WriteTransaction, seq: int) -> None:
    """Drops all references of an evaluation that is deleted."""
    transaction.execute(_RELEASE_ALL, {"owner": seq})
    transaction.execute(_DELETE_ALL, {"owner": seq})


def _key(seq: int, attempt: int, stream: int) -> dict[str, int]:
    return {"seq": seq, "in_attempt": attempt, "of": stream}
