"""The rows of blobs: made before an object is written, PRESENT when it is whole, DOOMED before it is removed."""

import hashlib
import re
import secrets
from dataclasses import dataclass

from sqlalchemy import bindparam, insert, select, update

from crucible_storage import models
from crucible_storage.artifact_tables import DOOMED, PRESENT, UPLOADING
from crucible_storage.transaction import WriteTransaction

_ROW = models.blob.c
_SAME = (
    select(_ROW.seq, _ROW.name, _ROW.size)
    .where(_ROW.tenant == bindparam("tenant"), _ROW.sha256 == bindparam("sha256"), _ROW.state == PRESENT)
    .with_for_update(key_share=True)
)
_MINE = update(models.blob).where(_ROW.seq == bindparam("key"), _ROW.state == UPLOADING)
_PRESENT = _MINE.values(state=PRESENT, sha256=bindparam("digest"), size=bindparam("length"), time=bindparam("now"))
_DOOMED = _MINE.values(state=DOOMED, time=bindparam("now"))
_NAMED = _MINE.values(name=bindparam("new_name"))
_RENAME = update(models.blob).where(_ROW.seq == bindparam("key")).values(name=bindparam("new_name"))
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Blob:
    """The row of an object: its number, the object's name, and how many bytes it has."""

    seq: int
    name: str
    size: int


def same(transaction: WriteTransaction, tenant: str, sha256: bytes) -> Blob | None:
    """The tenant's blob with these bytes; it stays PRESENT while the transaction lasts."""
    row = transaction.execute(_SAME, {"tenant": tenant, "sha256": sha256}).first()
    return None if row is None else Blob(row.seq, row.name, row.size)


def reserve(transaction: WriteTransaction, tenant: str, sha256: bytes, size: int, now: int) -> Blob:
    """A row for an object that is about to be written, under a name that nobody ever had."""
    name = f"{_folder(tenant)}/{sha256.hex()[:2]}/{sha256.hex()}.{secrets.token_hex(8)}"
    values = {"tenant": tenant, "name": name, "sha256": sha256, "size": size}
    made = insert(models.blob).values(**values, state=UPLOADING, released=0, time=now).returning(_ROW.seq)
    return Blob(int(transaction.execute(made).scalar_one()), name, size)


def make_present(transaction: WriteTransaction, blob: Blob, sha256: bytes, size: int, now: int) -> bool:
    """The object is whole; False when its row was given up meanwhile, for it took too long."""
    values = {"key": blob.seq, "digest": sha256, "length": size, "now": now}
    return transaction.execute(_PRESENT, values).rowcount == 1


def doom(transaction: WriteTransaction, blob: Blob, now: int) -> None:
    """What was being written is not wanted."""
    transaction.execute(_DOOMED, {"key": blob.seq, "now": now})


def replace(transaction: WriteTransaction, lost: Blob, by: Blob, now: int) -> None:
    """Gives a blob whose object is lost the one that was just written, and dooms the other row with the lost one."""
    if transaction.execute(_NAMED, {"key": by.seq, "new_name": lost.name}).rowcount == 1:
        transaction.execute(_RENAME, {"key": lost.seq, "new_name": by.name})
        doom(transaction, by, now)


def _folder(tenant: str) -> str:
    """A tenant's name as part of an object's name, readable where it is plain."""
    return tenant if _PLAIN.fullmatch(tenant) else f"={hashlib.sha256(tenant.encode()).hexdigest()[:32]}"
