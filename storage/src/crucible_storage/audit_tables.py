"""What the audit log reads from its tables."""

from collections.abc import Sequence

from sqlalchemy import bindparam, func, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_rpc import merkle
from crucible_rpc.errors import DataLossError
from crucible_storage import models
from crucible_storage.audit import Sealed

STEP = 4
"""Of the tree's levels above the leaves, only every fourth is stored; the others take at most 8 hashes to make."""

_RECORD, _NODE, _POINT = models.audit_record.c, models.audit_node.c, models.audit_checkpoint.c
_FIELDS = select(*(_RECORD[name] for name in Sealed._fields))
_RANGE = (
    _FIELDS.where(_RECORD.position > bindparam("after"), _RECORD.position <= bindparam("upto"))
    .order_by(_RECORD.position)
    .limit(bindparam("limit"))
)
_OF_SUBJECT = _FIELDS.where(_RECORD.subject == bindparam("subject"), _RECORD.action == bindparam("action"))
_LEAVES = (
    select(_RECORD.leaf)
    .where(_RECORD.position >= bindparam("first"), _RECORD.position <= bindparam("last"))
    .order_by(_RECORD.position)
)
_NODES = (
    select(_NODE.number, _NODE.hash)
    .where(_NODE.level == bindparam("level"), _NODE.number >= bindparam("first"), _NODE.number <= bindparam("last"))
    .order_by(_NODE.number)
)
_SIGNED = select(_POINT.size, _POINT.payload, _POINT.key_id, _POINT.signature)
_CHECKPOINTS = (
    _SIGNED.where(_POINT.size > bindparam("after"), _POINT.size <= bindparam("upto"))
    .order_by(_POINT.size)
    .limit(bindparam("limit"))
)
_LAST_CHECKPOINT = _SIGNED.order_by(_POINT.size.desc()).limit(1)
_ANY_PENDING = select(models.audit_pending.c.seq).limit(1)
_LAST_POSITION = select(func.coalesce(func.max(_RECORD.position), 0))


def records(connection: Connection, after: int, upto: int, limit: int) -> list[Sealed]:
    """Records by position, from behind `after` to `upto`, at most `limit`."""
    rows = connection.execute(_RANGE, {"after": after, "upto": upto, "limit": limit})
    return [Sealed(*row) for row in rows]


def of_subject(connection: Connection, subject: str, action: str) -> Sealed | None:
    """The first record of this action on this subject; None when there is none."""
    row = connection.execute(_OF_SUBJECT.order_by(_RECORD.position), {"subject": subject, "action": action}).first()
    return None if row is None else Sealed(*row)


def checkpoints(connection: Connection, after: int, upto: int, limit: int) -> list[tuple[int, SignedBytes]]:
    """Signed heads, each with the size that it is stored under, from behind `after` to `upto`, at most `limit`."""
    rows = connection.execute(_CHECKPOINTS, {"after": after, "upto": upto, "limit": limit})
    return [(row[0], _signed(*row[1:])) for row in rows]


def last_checkpoint(connection: Connection) -> tuple[int, SignedBytes] | None:
    """The latest head with the size that it is stored under; None when nothing was sealed yet."""
    row = connection.execute(_LAST_CHECKPOINT).first()
    return None if row is None else (row[0], _signed(*row[1:]))


def any_pending(connection: Connection) -> bool:
    """Whether a record waits to be sealed."""
    return connection.execute(_ANY_PENDING).first() is not None


def last_position(connection: Connection) -> int:
    """That of the last record; 0 when there is none."""
    return int(connection.execute(_LAST_POSITION).scalar_one())


def nodes(connection: Connection, level: int, first: int, last: int) -> dict[int, bytes]:
    """Stored nodes of one stored level, from number `first` to `last`, by number in order."""
    rows = connection.execute(_NODES, {"level": level, "first": first, "last": last})
    return {row[0]: row[1] for row in rows}


def subtrees(connection: Connection) -> merkle.Subtree:
    """The complete subtrees of the stored tree.

    Calling it raises DataLossError (AUDIT_LOG_DAMAGED) where a part is missing.
    """

    def subtree(level: int, index: int) -> bytes:
        above = level % STEP
        first, count = index << above, 1 << above
        if level < STEP:
            bounds = {"first": first + 1, "last": first + count}
            parts = list(connection.execute(_LEAVES, bounds).scalars())
        else:
            parts = list(nodes(connection, level - above, first, first + count - 1).values())
        if len(parts) != count:
            raise damaged(f"a part of its tree at record {(index << level) + 1} is missing")
        return _joined(parts)

    return subtree


def damaged(what: str) -> DataLossError:
    """The error that the stored log does not fit together."""
    text = f"the audit log is damaged: {what}; `crucible audit verify` says more"
    return DataLossError("AUDIT_LOG_DAMAGED", text)


def _joined(hashes: Sequence[bytes]) -> bytes:
    while len(hashes) > 1:
        hashes = [merkle.node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def _signed(payload: bytes, key_id: str, signature: bytes) -> SignedBytes:
    return SignedBytes(payload=payload, key_id=key_id, signature=signature)
