"""Brings the files that a run's program left from the executor to storage, before the run's end is reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import artifact_store_service_pb2 as artifacts
from crucible_rpc import logs
from crucible_rpc.errors import AbortedError, CallError, InvalidArgumentError, NotFoundError
from crucible_worker.carried import CarriedRun
from crucible_worker.peers import ExecutorPeer, StoragePeer

UPLOADS_AT_ONCE = 4
"""Of all runs: each has a piece of its file in memory."""

_SMALL_BYTES = 256 << 10
_FIRST_PATIENCE_SECONDS = 0.03
_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 5.0
_log = logging.getLogger(__name__)


class NotStorableError(Exception):
    """A file cannot be stored, however often it is tried; the message says why."""


class _ReadError(Exception):
    """The executor, not storage, failed the call in `error`."""

    def __init__(self, error: CallError) -> None:
        super().__init__(str(error))
        self.error = error


class Uploads:
    """Stores files, as often as it takes.

    Args:
        executor: has them.
        storage: takes them.
        executor_id: whose leases they belong to.
        executor_back: called when the executor failed; returns when it can be reached.
        on_stored: called for each that was stored.
    """

    def __init__(
        self,
        executor: ExecutorPeer,
        storage: StoragePeer,
        *,
        executor_id: Callable[[], str],
        executor_back: Callable[[CallError], Awaitable[None]],
        on_stored: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._storage = storage
        self._executor_id = executor_id
        self._executor_back = executor_back
        self._on_stored = on_stored
        self._places = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def store(self, run: CarriedRun, files: Sequence[ex.RunArtifact]) -> None:
        """Returns when storage has all `files` of a run, or when its lease is gone: then nobody wants them.

        Raises:
            NotStorableError: see the class.
        """
        for file in files:
            if not await self._store(run, file):
                return

    async def _store(self, run: CarriedRun, file: ex.RunArtifact) -> bool:
        header = artifacts.ArtifactHeader(
            executor_id=self._executor_id(), lease=run.ref(), path=file.path, size=file.bytes_kept, sha256=file.sha256
        )
        backoff = _FIRST_BACKOFF_SECONDS
        # Storage may have these bytes already, and says so when it has the header.
        patience = _FIRST_PATIENCE_SECONDS if file.bytes_kept > _SMALL_BYTES else 0.0
        while True:
            try:
                async with self._places:
                    await self._storage.upload(header, self._pieces(run, file), patience)
                self._on_stored()
                return True
            except _ReadError as failed:
                if isinstance(failed.error, NotFoundError):
                    raise NotStorableError(f"the executor has lost a file of the run: {failed}") from failed
                await self._executor_back(failed.error)
            except AbortedError as error:
                _log.warning("a file is not wanted any more", extra=logs.fields(run=run.run_id, error=str(error)))
                return False
            except InvalidArgumentError as error:
                raise NotStorableError(f"storage does not take a file of the run: {error}") from error
            except CallError as error:
                _log.warning("storage did not take a file", extra=logs.fields(run=run.run_id, error=str(error)))
            await asyncio.sleep(backoff)
            backoff = patience = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    async def _pieces(self, run: CarriedRun, file: ex.RunArtifact) -> AsyncIterator[bytes]:
        if not file.bytes_kept:
            return
        try:
            async with aclosing(self._executor.read_artifact(run.run_id, file.path)) as pieces:
                async for piece in pieces:
                    yield piece
        except CallError as error:
            raise _ReadError(error) from error
