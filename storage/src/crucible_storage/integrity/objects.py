"""The artifact store against the database: every object is there, with its size and, if asked, its digest."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from crucible_storage import models
from crucible_storage.artifact_tables import PRESENT
from crucible_storage.artifacts.blob_store import BlobMissingError, BlobStore
from crucible_storage.integrity.findings import Findings, Progress

_AT_ONCE = 16
_PART = 4 << 20
_BLOB = models.blob.c
_PAGE = (
    select(_BLOB.seq, _BLOB.tenant, _BLOB.name, _BLOB.sha256, _BLOB.size)
    .where(_BLOB.state == PRESENT, _BLOB.seq > bindparam("after"))
    .order_by(_BLOB.seq)
    .limit(_AT_ONCE)
)


async def check(
    connection: Connection, store: BlobStore, findings: Findings, progress: Progress, *, digests: bool
) -> None:
    """Checks all objects.

    Args:
        connection: in a transaction that sees one state of the database.
        store: where they should be.
        findings: takes the faults.
        progress: counts.
        digests: whether each is read and digested, too.

    Raises:
        UnavailableError: the store cannot be used now.
    """
    after = 0
    while page := connection.execute(_PAGE, {"after": after}).fetchall():
        after = page[-1].seq
        for row, wrong in zip(page, await _sizes(store, page), strict=True):
            if not wrong and digests:
                wrong = await _digest(store, row)
            if wrong:
                findings.add(f"artifact store: the object {row.name} {wrong}")
            progress.artifacts += 1
            progress.artifact_bytes += row.size


async def _sizes(store: BlobStore, page: Sequence[Any]) -> list[str]:
    return await asyncio.gather(*(_size(store, row) for row in page))


async def _size(store: BlobStore, row: Any) -> str:
    size = await store.size(row.name)
    if size is None:
        return "is missing"
    return "" if size == row.size else f"has {size} bytes, {row.size} were stored"


async def _digest(store: BlobStore, row: Any) -> str:
    digest = hashlib.sha256()
    try:
        for start in range(0, row.size, _PART):
            digest.update(await store.read(row.name, start, min(_PART, row.size - start)))
    except BlobMissingError:
        return "is missing"
    return "" if digest.digest() == row.sha256 else "has not the SHA-256 that was stored"
