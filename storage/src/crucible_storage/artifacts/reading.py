"""Reads objects of the artifact store in parts, and tells when one is not what was stored."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from crucible_rpc.errors import DataLossError
from crucible_storage.artifacts.blob_store import BlobStore


@dataclass(frozen=True, slots=True)
class Object:
    """An object: its name, how many bytes it has, and their SHA-256."""

    name: str
    size: int
    sha256: bytes


async def parts(
    store: BlobStore, found: Object, offset: int, end: int, read_bytes: int, given_bytes: int
) -> AsyncGenerator[tuple[int, bytes], None]:
    """The bytes from `offset` to `end` in order, each part with where it begins; at least one part.

    What begins at 0 and is read to the object's end has its digest checked before the last bytes are given out.

    Args:
        store: where it is.
        found: what is read.
        offset: the first byte.
        end: behind the last one; at most the object's size.
        read_bytes: asked of the store at a time.
        given_bytes: in a part, at most.

    Raises:
        BlobMissingError: they are not there.
        DataLossError: ARTIFACT_DAMAGED.
        UnavailableError: ARTIFACT_STORE_UNAVAILABLE.
    """
    whole = hashlib.sha256() if (offset, end) == (0, found.size) else None
    while True:
        data = await store.read(found.name, offset, min(read_bytes, end - offset))
        last = offset + len(data) == end
        if whole is not None:
            await asyncio.to_thread(whole.update, data)
            if last and whole.digest() != found.sha256:
                raise damaged(found)
        for start in range(0, max(1, len(data)), given_bytes):
            yield offset + start, data[start : start + given_bytes]
        if last:
            return
        offset += len(data)


def damaged(found: Object) -> DataLossError:
    """The error that the store does not hold what was stored."""
    text = f"the artifact store does not hold the {found.size} bytes that were stored"
    return DataLossError("ARTIFACT_DAMAGED", text)
