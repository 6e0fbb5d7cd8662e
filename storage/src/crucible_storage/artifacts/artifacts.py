"""What callers see of artifacts: the list, and bytes by range."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.artifact_pb2 import Artifact
from crucible_rpc.errors import NotFoundError, OutOfRangeError, UnavailableError
from crucible_storage import models, store
from crucible_storage.artifacts import reading, references
from crucible_storage.artifacts.blob_store import BlobMissingError, BlobStore
from crucible_storage.artifacts.reading import Object
from crucible_storage.artifacts.references import Kept
from crucible_storage.database import Database
from crucible_storage.lifecycle import Record

MAX_READS = 16
"""At once, in this process; each holds `READ_BYTES`."""

READ_BYTES = 4 << 20
"""Asked of the store at a time: in a bucket each is a request."""

GIVEN_BYTES = 1 << 20
"""Given out at a time."""

_WAIT_SECONDS = 10.0
_RESULT = select(models.result.c.result).where(models.result.c.evaluation_seq == bindparam("seq"))


@dataclass(frozen=True, slots=True)
class Listed:
    """The files of an evaluation that has ended.

    Attributes:
        artifacts: by path.
        omitted: what its program left beside them, and nobody kept.
        not_collected: why there may have been more that nobody could look at; empty when not.
    """

    artifacts: list[Artifact]
    omitted: int
    not_collected: str


class Artifacts:
    """Lists and reads files.

    Args:
        database: where rows are.
        blob_store: where bytes are.
    """

    def __init__(self, database: Database, blob_store: BlobStore) -> None:
        self._database = database
        self._store = blob_store
        self._places = asyncio.Semaphore(MAX_READS)

    async def list(self, tenant: str, evaluation_id: str) -> Listed:
        """The files of the attempt that ended an evaluation; none before its end.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND, also for another tenant's.
        """

        def run(connection: Connection) -> Listed:
            record = store.load_owned(connection, tenant, evaluation_id)
            files = [one.message() for one in _files(connection, record)]
            blob = connection.execute(_RESULT, {"seq": record.seq}).scalar_one_or_none()
            end = pb.Evaluation() if blob is None else pb.Evaluation.FromString(blob)
            return Listed(files, end.artifacts.omitted, end.artifacts.not_collected)

        return await self._database.read(run)

    async def read(
        self, tenant: str, evaluation_id: str, path: str, offset: int, limit: int
    ) -> AsyncGenerator[tuple[Artifact, int, bytes], None]:
        """Kept bytes of a file in order: what it is, an offset, and at most `GIVEN_BYTES` from there; at least once.

        What begins at 0 and is read to the end has its digest checked before the last bytes are given out.

        Args:
            tenant: whose it must be.
            evaluation_id: whose file.
            path: which.
            offset: the first byte.
            limit: at most so many; 0: all that follow.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND, ARTIFACT_NOT_FOUND.
            OutOfRangeError: ARTIFACT_RANGE.
            DataLossError: ARTIFACT_DAMAGED.
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE.
        """

        def find(connection: Connection) -> Kept:
            files = _files(connection, store.load_owned(connection, tenant, evaluation_id))
            for one in files:
                if one.path == path:
                    return one
            raise NotFoundError("ARTIFACT_NOT_FOUND", "the evaluation has no artifact of this path")

        kept = await self._database.read(find)
        if offset > kept.size:
            text = f"the artifact has {kept.size} bytes; ask for an offset up to that"
            raise OutOfRangeError("ARTIFACT_RANGE", text, metadata={"size": str(kept.size)})
        end = min(kept.size, offset + limit) if limit else kept.size
        found = Object(kept.name, kept.size, kept.sha256)
        await self._place()
        try:
            try:
                async for at, data in reading.parts(self._store, found, offset, end, READ_BYTES, GIVEN_BYTES):
                    yield kept.message(), at, data
            except BlobMissingError:
                await self._database.read(find)  # deleted meanwhile, it is not damaged
                raise reading.damaged(found) from None
        finally:
            self._places.release()

    async def _place(self) -> None:
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            text = "as many artifacts as storage serves at once are being read; try again"
            raise UnavailableError("ARTIFACT_STORE_UNAVAILABLE", text, retry_after=timedelta(seconds=1)) from None


def _files(connection: Connection, record: Record) -> list[Kept]:
    return references.of_attempt(connection, record.seq, record.attempt, confirmed=True) if record.terminal else []
