"""Stores bytes as an object that somebody refers to from then on: whole or not at all, with bounded memory.

First a row that names the object to be, then the object, then in one transaction the row becomes PRESENT and is
referred to. Whatever ends in between leaves a row by which `collector` finds the object.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

from sqlalchemy.exc import IntegrityError

from crucible_rpc.errors import CallError, UnavailableError
from crucible_storage.artifacts import blobs
from crucible_storage.artifacts.blob_store import BlobStore
from crucible_storage.artifacts.blobs import Blob
from crucible_storage.clock import Clock
from crucible_storage.database import Database
from crucible_storage.transaction import WriteTransaction

_TRIES = 3
_RETRY = timedelta(seconds=1)


class Content(Protocol):
    """Bytes that are to be stored.

    Attributes:
        tenant: whose they are.
        size: how many.
        sha256: of these; known for sure when `parts` has ended.
    """

    tenant: str
    size: int
    sha256: bytes

    def parts(self) -> AsyncIterator[bytes]:
        """The bytes in order; raises, at its end at the latest, unless they are what they should be."""
        ...


Hold = Callable[[WriteTransaction], Callable[[Blob], None]]
"""Has nobody else change who is to refer to an object while the transaction lasts, or raises when that may not refer.

The answer has it refer to a blob that is PRESENT and whose row is locked.
"""


class Objects:
    """Stores objects.

    Args:
        database: where rows are.
        blob_store: where bytes are.
        clock: for the rows.
    """

    def __init__(self, database: Database, blob_store: BlobStore, clock: Clock) -> None:
        self._database = database
        self._store = blob_store
        self._clock = clock

    async def store(self, content: Content, hold: Hold, same: Blob | None, *, damaged: bool = False) -> None:
        """Has somebody refer to an object with these bytes, and stores one unless it is there.

        Args:
            content: the bytes; not read when they are there.
            hold: who refers to it.
            same: a blob that should have these bytes, of the same tenant.
            damaged: it is known that it has not: then it gets a new object.

        Raises:
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE; nothing is stored, try again.
            Exception: what `content` or `hold` raised; nothing is stored.
        """
        lost = same
        if same is not None and not damaged and await self._store.size(same.name) == content.size:
            if await self._database.write(lambda transaction: _refer_to_same(transaction, content, hold)):
                return
            lost = None  # collected meanwhile
        blob = await self._database.write(lambda transaction: self._reserve(transaction, content, hold))
        try:
            await self._store.put(blob.name, content.parts())
            await self._finished(content, hold, blob, lost)
        except BaseException:
            with suppress(CallError):  # then it is found by its age
                await self._database.write(lambda transaction: blobs.doom(transaction, blob, self._clock.now()))
            raise

    async def _finished(self, content: Content, hold: Hold, blob: Blob, lost: Blob | None) -> None:
        for _ in range(_TRIES):
            with suppress(IntegrityError):  # another process stored the same bytes at this moment: refer to those
                await self._database.write(
                    lambda transaction: self._finish(transaction, content, hold, blob, lost),
                )
                return
        raise busy("the same bytes are stored by others all the time; try again")

    # In transactions.

    def _reserve(self, transaction: WriteTransaction, content: Content, hold: Hold) -> Blob:
        hold(transaction)
        return blobs.reserve(transaction, content.tenant, content.sha256, content.size, self._clock.now())

    def _finish(
        self, transaction: WriteTransaction, content: Content, hold: Hold, blob: Blob, lost: Blob | None
    ) -> None:
        refer, now = hold(transaction), self._clock.now()
        there = blobs.same(transaction, content.tenant, content.sha256)
        if there is None:
            if not blobs.make_present(transaction, blob, content.sha256, content.size, now):
                raise busy("storing the artifact took too long; try again")
            there = blob
        elif lost == there:
            blobs.replace(transaction, lost, blob, now)
        else:
            blobs.doom(transaction, blob, now)
        refer(there)


def _refer_to_same(transaction: WriteTransaction, content: Content, hold: Hold) -> bool:
    refer = hold(transaction)
    blob = blobs.same(transaction, content.tenant, content.sha256)
    if blob is None:
        return False
    refer(blob)
    return True


def busy(text: str) -> UnavailableError:
    """The error that the store cannot take an object just now."""
    return UnavailableError("ARTIFACT_STORE_UNAVAILABLE", text, retry_after=_RETRY)
