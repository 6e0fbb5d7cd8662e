"""The artifact store: bytes under names, in a folder or in an S3 bucket. The only module that speaks to obstore.

A name is written once, appears whole or not at all, and is never written again after it was deleted. Memory is bounded:
an upload holds a few parts of `PART` bytes, a read what it asked for.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from crucible_rpc.errors import StartError, UnavailableError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

PART = 8 << 20
"""Bytes of one part of an upload. What is not larger is one request."""

_PARTS_AT_ONCE = 2
_PROBE = "probe/crucible"
_FOLDERS = 3  # that a name may have made: see `uploads`
_PROBE_SECONDS = 10.0
_RETRY = timedelta(seconds=2)
_STATUS = re.compile(r"status code: (\d{3})")
_REFUSALS = {"400", "401", "403", "404", "405"}  # of a bucket: trying again does not help
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_LOG = logging.getLogger(__name__)


class BlobMissingError(Exception):
    """There is no object of this name, or it has fewer bytes than were asked for."""


class StoreRefusedError(UnavailableError):
    """The store can be reached and says no: a wrong bucket, wrong credentials. Somebody has to mend that."""


class _AbandonedError(Exception):
    """Nobody waits for the upload any more."""


class BlobStore:
    """Objects in one place.

    Args:
        make: makes obstore's, at the first use: whoever stores no artifact need not load it.
        place: where it is, for people; without any secret.
        folder: of a store that is a folder of this machine, whose files are flushed to the disk.
    """

    def __init__(self, make: Callable[[], "ObjectStore"], place: str, folder: Path | None = None) -> None:
        self._make = make
        self.place = place
        self._folder = folder

    @cached_property
    def _store(self) -> "ObjectStore":
        return self._make()

    async def put(self, name: str, parts: AsyncIterator[bytes]) -> None:
        """Writes an object. When `parts` raises, nothing is written, and that is raised.

        Raises:
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE.
        """
        import obstore

        first, more = await _first_part(parts)
        abandoned = asyncio.Event()

        def put() -> Awaitable[object]:
            if more is None:
                return obstore.put_async(self._store, name, first, use_multipart=False)
            source = _chained(first, more, parts, abandoned)
            return obstore.put_async(
                self._store, name, source, chunk_size=PART, max_concurrency=_PARTS_AT_ONCE, use_multipart=True
            )

        try:
            await self._said(lambda: _to_its_end(asyncio.ensure_future(put()), abandoned))
            if self._folder is not None:
                file = self._folder / name
                await self._said(lambda: asyncio.to_thread(_flush, file))
        except BlobMissingError:  # a part of the way to it was removed meanwhile
            raise self._unavailable("it lost what was being written; try again") from None

    async def read(self, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`.

        Raises:
            BlobMissingError: they are not there.
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE.
        """
        import obstore

        if not length:
            return b""
        try:
            data = await self._said(lambda: obstore.get_range_async(self._store, name, start=start, length=length))
        except StoreRefusedError:
            raise
        except UnavailableError:
            size = await self.size(name)  # a range beyond the end has an error of its own in each store
            if size is None or size < start + length:
                raise BlobMissingError(name) from None
            raise
        if len(data) != length:
            raise BlobMissingError(name)
        return bytes(data)

    async def size(self, name: str) -> int | None:
        """The size of an object; None when there is none.

        Raises:
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE.
        """
        import obstore

        try:
            return int((await self._said(lambda: obstore.head_async(self._store, name)))["size"])
        except BlobMissingError:
            return None

    async def delete(self, name: str) -> None:
        """Removes an object, and what a killed upload of it left; without one nothing happens.

        Raises:
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE.
        """
        import obstore

        with suppress(BlobMissingError):
            await self._said(lambda: obstore.delete_async(self._store, name))
        if self._folder is not None:
            file = self._folder / name
            with suppress(BlobMissingError):
                await self._said(lambda: asyncio.to_thread(_remove_unfinished, file))

    async def prepare(self) -> None:
        """Makes a folder; in a bucket writes, reads and removes a small object.

        A bucket that cannot be reached just now is only warned of.

        Raises:
            StartError: it cannot be used before somebody mends something.
        """
        if self._folder is None:
            await self._probe()
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"the folder of artifacts {self._folder} cannot be made: {error.strerror}") from None

    async def _probe(self) -> None:
        import obstore

        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._said(lambda: obstore.put_async(self._store, _PROBE, b"crucible", use_multipart=False))
                await self.read(_PROBE, 0, 8)
                await self.delete(_PROBE)
        except BlobMissingError:
            raise StartError(f"the artifact store {self.place} does not hold what was written to it") from None
        except StoreRefusedError as error:
            raise StartError(error.message) from None
        except (UnavailableError, TimeoutError):
            _LOG.warning("the artifact store %s cannot be reached; artifacts wait until it can", self.place)

    async def _said(self, call: Callable[[], Awaitable[T]]) -> T:
        """The answer, or what it means that there is none."""
        from obstore.exceptions import BaseError

        try:
            return await call()
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._refused("there is no such bucket") from None
            raise BlobMissingError from None
        except (BaseError, OSError) as error:
            raise self._failed(str(error)) from None

    def _failed(self, said: str) -> UnavailableError:
        line = " ".join(said.partition("\n\nDebug source")[0].split())[:500]
        _LOG.warning("the artifact store failed: %s", line)
        status, code = _STATUS.search(said), _CODE.search(said)
        if "NoSuchBucket" in said:
            return self._refused("there is no such bucket")
        if status is not None and status[1] in _REFUSALS:
            why = f"{status[1]}" if code is None else f"{status[1]}, {code[1]}"
            return self._refused(f"it refuses these credentials or this request ({why})")
        if "No space left" in said or "os error 28" in said:
            return self._unavailable("its disk is full")
        return self._unavailable("it cannot be reached or does not answer; try again")

    def _refused(self, why: str) -> StoreRefusedError:
        text = f"the artifact store {self.place} cannot be used: {why}"
        return StoreRefusedError("ARTIFACT_STORE_UNAVAILABLE", text, retry_after=_RETRY)

    def _unavailable(self, why: str) -> UnavailableError:
        text = f"the artifact store cannot be used now: {why}"
        return UnavailableError("ARTIFACT_STORE_UNAVAILABLE", text, retry_after=_RETRY)


def in_folder(folder: Path) -> BlobStore:
    """A store in a folder, which need not be there yet."""

    def make() -> "ObjectStore":
        from obstore.store import LocalStore

        return LocalStore(str(folder), automatic_cleanup=False, mkdir=True)

    return BlobStore(make, str(folder), folder)


async def _first_part(parts: AsyncIterator[bytes]) -> tuple[bytes, bytes | None]:
    """What comes until `PART` bytes are there, and then what came beyond; None when there is no more."""
    held: list[bytes] = []
    size = 0
    async for part in parts:
        if size + len(part) > PART:
            return b"".join(held), part
        held.append(part)
        size += len(part)
    return b"".join(held), None


async def _chained(
    first: bytes, more: bytes, parts: AsyncIterator[bytes], abandoned: asyncio.Event
) -> AsyncIterator[bytes]:
    yield first
    yield more
    async for part in parts:
        if abandoned.is_set():
            raise _AbandonedError
        yield part
    if abandoned.is_set():
        raise _AbandonedError


async def _to_its_end(putting: "asyncio.Future[object]", abandoned: asyncio.Event) -> None:
    """Waits for an upload also when the caller leaves: only one that ends by itself takes back what it wrote."""
    try:
        await asyncio.shield(putting)
    except asyncio.CancelledError:
        abandoned.set()
        while not putting.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([putting])
        putting.exception()
        raise


def _flush(file: Path) -> None:
    """The file's bytes and its name to the disk: obstore leaves both to the system."""
    for path in (file, *list(file.parents)[:_FOLDERS]):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_unfinished(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}#*"):
        path.unlink(missing_ok=True)
