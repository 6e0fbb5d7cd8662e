"""Stores one file of a run that is leased, with bounded memory, whole or not at all.

First a row that names the object to be, then the object, then in one transaction the row becomes PRESENT and the run
refers to it. Whatever ends in between leaves a row by which `collector` finds the object. The lease is checked in the
first and in the last transaction.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.exc import IntegrityError

from crucible_rpc.errors import AbortedError, CallError, InvalidArgumentError, UnavailableError
from crucible_storage import store
from crucible_storage.artifacts import blobs, references
from crucible_storage.artifacts.blob_store import BlobStore
from crucible_storage.artifacts.blobs import Blob
from crucible_storage.clock import Clock
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
_TRIES = 3
_RETRY = timedelta(seconds=1)


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
        keep: how many of the bytes may be kept.
        done: everything is there already.
        same: a blob that should have these bytes.
    """

    keep: int
    done: Stored | None = None
    same: Blob | None = None


class Uploads:
    """Stores files.

    Args:
        database: where rows are.
        store: where bytes are.
        clock: for the rows.
        max_bytes: kept of one attempt, all its files together.
    """

    def __init__(self, database: Database, blob_store: BlobStore, clock: Clock, max_bytes: int) -> None:
        self._database = database
        self._store = blob_store
        self._clock = clock
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
            raise _busy("as many artifacts as storage takes at once are being stored; try again") from None
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                return await self._stored(wanted, parts)
        except TimeoutError:
            raise _busy("storing the artifact took too long; try again") from None
        finally:
            self._places.release()

    async def _stored(self, wanted: Wanted, parts: AsyncIterator[bytes]) -> Stored:
        begun = await self._database.write(lambda transaction: self._begin(transaction, wanted))
        if begun.done is not None:
            return begun.done
        lost = begun.same
        if lost is not None and await self._store.size(lost.name) == wanted.size:
            linked = await self._database.write(lambda transaction: self._link(transaction, wanted))
            if linked is not None:
                return linked
            lost = None  # collected meanwhile
        return await self._write(wanted, begun.keep, parts, lost)

    async def _write(self, wanted: Wanted, keep: int, parts: AsyncIterator[bytes], lost: Blob | None) -> Stored:
        blob = await self._database.write(lambda transaction: self._reserve(transaction, wanted, keep))
        content = _Content(wanted, keep)
        try:
            await self._store.put(blob.name, content.kept(parts))
            stored = Stored(keep, content.digest)
            return await self._finished(wanted, blob, stored, lost)
        except BaseException:
            with suppress(CallError):  # then it is found by its age
                await self._database.write(lambda transaction: blobs.doom(transaction, blob, self._clock.now()))
            raise

    async def _finished(self, wanted: Wanted, blob: Blob, stored: Stored, lost: Blob | None) -> Stored:
        finish: Callable[[WriteTransaction], None] = lambda transaction: self._finish(  # noqa: E731
            transaction, wanted, blob, stored, lost
        )
        for _ in range(_TRIES):
            with suppress(IntegrityError):  # another process stored the same bytes at this moment: refer to those
                await self._database.write(finish)
                return stored
        raise _busy("the same bytes are stored by others all the time; try again")

    # In transactions.

    def _begin(self, transaction: WriteTransaction, wanted: Wanted) -> _Begun:
        record = _held(transaction, wanted)
        keep = self._allowed(transaction, record, wanted)
        for one in references.of_attempt(transaction.connection, record.seq, record.attempt):
            if one.path == wanted.path and keep == wanted.size and (one.size, one.sha256) == (keep, wanted.sha256):
                return _Begun(keep, done=Stored(one.size, one.sha256))
        whole = keep == wanted.size
        return _Begun(keep, same=blobs.same(transaction, record.tenant, wanted.sha256) if whole else None)

    def _link(self, transaction: WriteTransaction, wanted: Wanted) -> Stored | None:
        record = _held(transaction, wanted)
        blob = blobs.same(transaction, record.tenant, wanted.sha256)
        if blob is None:
            return None
        self._check_room(transaction, record, wanted, wanted.size)
        references.point(transaction, record, wanted.path, wanted.size, blob.seq, cut=False)
        return Stored(wanted.size, wanted.sha256)

    def _reserve(self, transaction: WriteTransaction, wanted: Wanted, keep: int) -> Blob:
        record = _held(transaction, wanted)
        return blobs.reserve(transaction, record.tenant, wanted.sha256, keep, self._clock.now())

    def _finish(
        self, transaction: WriteTransaction, wanted: Wanted, blob: Blob, stored: Stored, lost: Blob | None
    ) -> None:
        record, now = _held(transaction, wanted), self._clock.now()
        self._check_room(transaction, record, wanted, stored.size)
        there = blobs.same(transaction, record.tenant, stored.sha256)
        if there is None:
            if not blobs.make_present(transaction, blob, stored.sha256, stored.size, now):
                raise _busy("storing the artifact took too long; try again")
            there = blob
        elif lost == there:
            blobs.replace(transaction, lost, blob, now)
        else:
            blobs.doom(transaction, blob, now)
        cut = stored.size < wanted.size
        references.point(transaction, record, wanted.path, wanted.size, there.seq, cut=cut)

    def _allowed(self, transaction: WriteTransaction, record: Record, wanted: Wanted) -> int:
        """How many bytes of the file may be kept beside the attempt's others."""
        others = [
            one
            for one in references.of_attempt(transaction.connection, record.seq, record.attempt)
            if one.path != wanted.path
        ]
        if len(others) >= MAX_FILES:
            raise InvalidArgumentError("INVALID_FIELD", f"a run has at most {MAX_FILES} artifacts")
        return max(0, min(wanted.size, self._max_bytes - sum(one.size for one in others)))

    def _check_room(self, transaction: WriteTransaction, record: Record, wanted: Wanted, size: int) -> None:
        if self._allowed(transaction, record, wanted) < size:
            raise _busy("other artifacts of this run were stored meanwhile; try again")


class _Content:
    """The bytes of a file on their way: counted and digested, and cut.

    Attributes:
        digest: of what is kept; right when all was taken.
    """

    def __init__(self, wanted: Wanted, keep: int) -> None:
        self._wanted = wanted
        self._keep = keep
        self.digest = wanted.sha256

    async def kept(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """What is to be written; raises at its end unless the whole file was what was announced."""
        whole, kept, size = hashlib.sha256(), hashlib.sha256(), 0
        cut = self._keep < self._wanted.size
        async for part in parts:
            if size + len(part) > self._wanted.size:
                raise _mismatch(f"more than the {self._wanted.size} bytes that were announced came")
            whole.update(part)
            if wanted := part[: max(0, self._keep - size)]:
                if cut:
                    kept.update(wanted)
                yield wanted
            size += len(part)
        if size != self._wanted.size:
            raise _mismatch(f"{size} of {self._wanted.size} bytes came")
        if whole.digest() != self._wanted.sha256:
            raise _mismatch("the bytes that came have not the SHA-256 that was announced")
        if cut:
            self.digest = kept.digest()


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


def _busy(text: str) -> UnavailableError:
    return UnavailableError("ARTIFACT_STORE_UNAVAILABLE", text, retry_after=_RETRY)
