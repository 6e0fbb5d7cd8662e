"""Who refers to which blob: every statement on the tables of artifacts that belongs to one evaluation.

A reference is added only in a transaction that has the blob's row locked and PRESENT, or made it so; one that is
dropped marks its blob. By that alone `collector` knows what nobody refers to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1.artifact_pb2 import Artifact
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc.errors import FailedPreconditionError
from crucible_storage import models
from crucible_storage.lifecycle import Record
from crucible_storage.transaction import WriteTransaction

_ROW, _BLOB = models.artifact.c, models.blob.c
_ATTEMPT = and_(_ROW.evaluation_seq == bindparam("seq"), _ROW.attempt == bindparam("attempt"))
_JOINED = models.artifact.join(models.blob, _BLOB.seq == _ROW.blob_seq)
_OF_ATTEMPT = (
    select(_ROW.path, _ROW.total, _ROW.cut, _ROW.confirmed, _BLOB.seq, _BLOB.name, _BLOB.sha256, _BLOB.size)
    .select_from(_JOINED)
    .where(_ATTEMPT)
)
_CONFIRMED = _OF_ATTEMPT.where(_ROW.confirmed == 1)
_SET = update(models.artifact).where(
    _ROW.evaluation_seq == bindparam("seq"),
    _ROW.attempt == bindparam("in_attempt"),
    _ROW.path == bindparam("where_path"),
)
_CONFIRM = _SET.values(confirmed=1, total=bindparam("new_total"))
_POINT = _SET.values(blob_seq=bindparam("new_blob"), cut=bindparam("new_cut"))
_RELEASE_ONE = update(models.blob).where(_BLOB.seq == bindparam("key")).values(released=1)
_RELEASE_ALL = (
    update(models.blob)
    .where(_BLOB.seq.in_(select(_ROW.blob_seq).where(_ROW.evaluation_seq == bindparam("owner"))))
    .values(released=1)
)
_DELETE_ALL = delete(models.artifact).where(_ROW.evaluation_seq == bindparam("owner"))
_BYTES = (
    select(func.coalesce(func.sum(_BLOB.size), 0))
    .select_from(_JOINED)
    .where(_ROW.evaluation_seq == bindparam("seq"), _ROW.confirmed == 1)
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that is stored.

    Attributes:
        path: below `/workspace/out`.
        total: its size before it was cut.
        cut: whether storage kept less of it than the executor.
        confirmed: whether the signed record that lists it is stored.
        blob: the number of its blob.
        name: of its object.
        sha256: of its bytes that are kept.
        size: how many these are.
    """

    path: str
    total: int
    cut: bool
    confirmed: bool
    blob: int
    name: str
    sha256: bytes
    size: int

    def message(self) -> Artifact:
        """As callers see it."""
        return Artifact(
            path=self.path,
            bytes_total=self.total,
            bytes_kept=self.size,
            truncated=self.size < self.total,
            sha256=self.sha256,
        )


def of_attempt(connection: Connection, seq: int, attempt: int, *, confirmed: bool = False) -> list[Kept]:
    """The files of one attempt, by path; those that a stored record lists, or all."""
    rows = connection.execute(_CONFIRMED if confirmed else _OF_ATTEMPT, {"seq": seq, "attempt": attempt})
    found = [Kept(row[0], row[1], bool(row[2]), bool(row[3]), *row[4:]) for row in rows]
    return sorted(found, key=lambda one: one.path.encode())


def point(transaction: WriteTransaction, record: Record, path: str, size: int, blob: int, *, cut: bool) -> None:
    """Has the file of this path, of the record's attempt, refer to a blob that is PRESENT and whose row is locked."""
    key = {"seq": record.seq, "in_attempt": record.attempt}
    before = [one for one in of_attempt(transaction.connection, record.seq, record.attempt) if one.path == path]
    if not before:
        row = {"evaluation_seq": record.seq, "attempt": record.attempt, "path": path, "tenant": record.tenant}
        made = row | {"blob_seq": blob, "total": size, "cut": int(cut), "confirmed": 0}
        transaction.execute(insert(models.artifact), made)
        return
    transaction.execute(_POINT, key | {"where_path": path, "new_blob": blob, "new_cut": int(cut)})
    if before[0].blob != blob:
        transaction.execute(_RELEASE_ONE, {"key": before[0].blob})


def confirm(transaction: WriteTransaction, record: Record, listed: Sequence[ex.RunArtifact]) -> None:
    """The record that lists these files is about to be stored as the attempt's end; they are all there.

    Raises:
        FailedPreconditionError: ARTIFACTS_MISSING, one is not there, or not with these bytes.
    """
    stored = {one.path: one for one in of_attempt(transaction.connection, record.seq, record.attempt)}
    total = 0
    for said in listed:
        one = stored.get(said.path)
        if one is None or not same(one, said):
            text = (
                f"{len(listed)} artifacts are listed, and not all of them are stored with these bytes; store them first"
            )
            raise FailedPreconditionError("ARTIFACTS_MISSING", text)
        key = {"seq": record.seq, "in_attempt": record.attempt, "where_path": said.path}
        transaction.execute(_CONFIRM, key | {"new_total": said.bytes_total})
        total += one.size
    transaction.usage.stored(record.tenant, total)


def same(one: Kept, said: ex.RunArtifact) -> bool:
    """Whether what is stored is what the record says; less when storage cut it."""
    if one.cut:
        return one.size < said.bytes_kept
    return (one.size, one.sha256) == (said.bytes_kept, said.sha256)


def delete_all(transaction: WriteTransaction, seq: int) -> int:
    """Drops all references of an evaluation that is deleted; answers the bytes that were counted as its tenant's."""
    counted = int(transaction.execute(_BYTES, {"seq": seq}).scalar_one())
    transaction.execute(_RELEASE_ALL, {"owner": seq})
    transaction.execute(_DELETE_ALL, {"owner": seq})
    return counted
