"""Stores one file of a run that is leased, with bounded memory, whole or not at all.

The lease is checked before the bytes are taken, and again in the transaction that has the run refer to them.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from crucible_rpc.errors import AbortedError, InvalidArgumentError
from crucible_storage import store
from crucible_storage.artifacts import blobs, references
from crucible_storage.artifacts.blobs import Blob
from crucible_storage.artifacts.objects import Objects, busy
from crucible_storage.database import Database
from crucible_storage.lifecycle import Record
from crucible_storage.names import RunName
from crucible_storage.transaction import WriteTransaction

MAX_UPLOADS = 4
"""At once, in this process; each holds a few parts in memory."""

UPLOAD_SECONDS = 3600.0
"""The longest that one upload may take; `collector` gives up what is twice as old."""

MAX_FILES = 256
_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that is to be stored.

    Attributes:
        executor: who holds the lease.
        run: whose file it is.
        epoch: of the lease.
        path: below `/workspace/out`.
        size: bytes that come.
        sha256: of these.
    """

    executor: str
    run: RunName
    epoch: int
    path: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """What is kept of a file: how many bytes, and their SHA-256."""

    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class _Begun:
    """How an upload goes on.

    Attributes:
        tenant: whose the run is.
        keep: how many of the bytes may be kept.
        done: everything is there already.
        same: a blob that should have these bytes.
    """

    tenant: str
    keep: int
    done: Stored | None = None
    same: Blob | None = None


class Uploads:
    """Stores files.

    Args:
        database: where rows are.
        objects: stores the bytes.
        max_bytes: kept of one attempt, all its files together.
    """

    def __init__(self, database: Database, objects: Objects, max_bytes: int) -> None:
        self._database = database
        self._objects = objects
        self._max_bytes = max_bytes
        self._places = asyncio.Semaphore(MAX_UPLOADS)

    async def store(self, wanted: Wanted, parts: AsyncIterator[bytes]) -> Stored:
        """Stores a file; one that is there already with these bytes is not read.

        Args:
            wanted: which, and what it must be.
            parts: its bytes.

        Raises:
            AbortedError: STALE_LEASE.
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE; nothing of it is stored, try again.
            InvalidArgumentError: ARTIFACT_MISMATCH.
        """
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise busy("as many artifacts as storage takes at once are being stored; try again") from None
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                return await self._stored(wanted, parts)
        except TimeoutError:
            raise busy("storing the artifact took too long; try again") from None
        finally:
            self._places.release()

    async def _stored(self, wanted: Wanted, parts: AsyncIterator[bytes]) -> Stored:
        begun = await self._database.write(lambda transaction: self._begin(transaction, wanted))
        if begun.done is not None:
            return begun.done
        content = _Content(begun.tenant, wanted, begun.keep, parts)
        await self._objects.store(content, lambda transaction: self._hold(transaction, wanted, begun.keep), begun.same)
        return Stored(content.size, content.sha256)

    def _begin(self, transaction: WriteTransaction, wanted: Wanted) -> _Begun:
        record = _held(transaction, wanted)
        keep = _allowed(transaction, record, wanted, self._max_bytes)
        for one in references.of_attempt(transaction.connection, record.seq, record.attempt):
            if one.path == wanted.path and keep == wanted.size and (one.size, one.sha256) == (keep, wanted.sha256):
                return _Begun(record.tenant, keep, done=Stored(one.size, one.sha256))
        whole = keep == wanted.size
        same = blobs.same(transaction, record.tenant, wanted.sha256) if whole else None
        return _Begun(record.tenant, keep, same=same)

    def _hold(self, transaction: WriteTransaction, wanted: Wanted, size: int) -> Callable[[Blob], None]:
        """The run, while its lease is held and its other files leave room."""
        record = _held(transaction, wanted)
        if _allowed(transaction, record, wanted, self._max_bytes) < size:
            raise busy("other artifacts of this run were stored meanwhile; try again")

        def refer(blob: Blob) -> None:
            references.point(transaction, record, wanted.path, wanted.size, blob.seq, cut=size < wanted.size)

        return refer


class _Content:
    """The bytes of a file on their way: counted and digested, and cut.

    Attributes:
        tenant: whose they are.
        size: how many are kept.
        sha256: of what is kept; right when all was taken.
    """

    def __init__(self, tenant: str, wanted: Wanted, keep: int, parts: AsyncIterator[bytes]) -> None:
        self.tenant = tenant
        self.size = keep
        self.sha256 = wanted.sha256
        self._wanted = wanted
        self._parts = parts

    async def parts(self) -> AsyncIterator[bytes]:
        """What is to be written; raises at its end unless the whole file was what was announced."""
        whole, kept, size = hashlib.sha256(), hashlib.sha256(), 0
        cut = self.size < self._wanted.size
        async for part in self._parts:
            if size + len(part) > self._wanted.size:
                raise _mismatch(f"more than the {self._wanted.size} bytes that were announced came")
            whole.update(part)
            if wanted := part[: max(0, self.size - size)]:
                if cut:
                    kept.update(wanted)
                yield wanted
            size += len(part)
        if size != self._wanted.size:
            raise _mismatch(f"{size} of {self._wanted.size} bytes came")
        if whole.digest() != self._wanted.sha256:
            raise _mismatch("the bytes that came have not the SHA-256 that was announced")
        if cut:
            self.sha256 = kept.digest()


def _allowed(transaction: WriteTransaction, record: Record, wanted: Wanted, max_bytes: int) -> int:
    """How many bytes of the file may be kept beside the attempt's others."""
    others = [
        one
        for one in references.of_attempt(transaction.connection, record.seq, record.attempt)
        if one.path != wanted.path
    ]
    if len(others) >= MAX_FILES:
        raise InvalidArgumentError("INVALID_FIELD", f"a run has at most {MAX_FILES} artifacts")
    return max(0, min(wanted.size, max_bytes - sum(one.size for one in others)))


def _held(transaction: WriteTransaction, wanted: Wanted) -> Record:
    record = store.load(transaction.connection, wanted.run.evaluation_id, to_change=True)
    if record is None or not record.held_by(wanted.executor, wanted.epoch) or record.attempt != wanted.run.attempt:
        text = (
            f"the lease of run {wanted.run.evaluation_id}.{wanted.run.attempt} under epoch {wanted.epoch} is not held"
        )
        raise AbortedError("STALE_LEASE", text)
    return record


def _mismatch(text: str) -> InvalidArgumentError:
    return InvalidArgumentError("ARTIFACT_MISMATCH", text)
