"""The database of a storage that runs: consistent copies, one at a time, on its own disk; and what it uses."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlalchemy import func, select, text

from crucible_rpc.errors import CallError, FailedPreconditionError, ResourceExhaustedError, UnavailableError
from crucible_storage import models
from crucible_storage.clock import Clock
from crucible_storage.maintenance import sqlite_file, usage
from crucible_storage.maintenance.usage import Usage

_PARTIAL = "copy.partial"
_MARGIN = 64 << 20  # storage itself goes on writing meanwhile
_LOG = logging.getLogger(__name__)
_LAST = select(func.coalesce(func.max(models.event.c.position), 0))


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy, open for reading; it has no name any more and is gone when it is closed.

    Attributes:
        stream: its bytes.
        size: how many.
        revision: of its schema.
        last_position: of its event log.
        time: when it was made, microseconds since 1970.
    """

    stream: IO[bytes]
    size: int
    revision: str
    last_position: int
    time: int


class LiveDatabase:
    """Reads the file beside the writer, over connections of its own.

    Args:
        file: the database.
        clock: says when a copy was made.
    """

    def __init__(self, file: Path, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._busy = False

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[Copy]:
        """A copy of the database as it is now, until the block ends.

        Raises:
            FailedPreconditionError: BACKUP_RUNNING or NO_DATABASE_FILE.
            ResourceExhaustedError: STORAGE_FULL.
            UnavailableError: the database cannot be read now.
        """
        self._check_file()
        if self._busy:
            raise FailedPreconditionError("BACKUP_RUNNING", "another backup is being made; wait for it to end")
        self._busy = True
        making = asyncio.ensure_future(asyncio.to_thread(self._make))
        try:
            yield await asyncio.shield(making)
        finally:
            while not making.done():  # the caller left: the thread cannot be stopped, and what it made must go
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([making])
            if making.exception() is None:
                making.result().stream.close()
            self._busy = False

    async def usage(self) -> Usage:
        """Where the bytes are; reads all tables.

        Raises:
            FailedPreconditionError: NO_DATABASE_FILE.
        """
        self._check_file()

        def run() -> Usage:
            with sqlite_file.read_only(self._file) as connection:
                return usage.of(connection, self._file)

        return await asyncio.to_thread(run)

    def _check_file(self) -> None:
        if not self._file.is_file():
            text_ = "this storage is on a database server, whose own tools back it up"
            raise FailedPreconditionError("NO_DATABASE_FILE", text_)

    def _make(self) -> Copy:
        room = os.statvfs(self._file.parent)
        free, size = room.f_bavail * room.f_frsize, usage.database_bytes(self._file)
        if free < size + _MARGIN:
            text_ = (
                f"a copy needs {(size + _MARGIN) >> 20} MiB of free disk beside the database, {free >> 20} are there"
            )
            raise ResourceExhaustedError("STORAGE_FULL", text_)
        target = self._file.with_name(_PARTIAL)
        target.unlink(missing_ok=True)  # left by a process that was killed
        try:
            return self._copied(target)
        except CallError:
            raise
        except (OSError, sqlite3.Error):
            _LOG.exception("the database could not be copied")
            text_ = "storage could not copy its database; its log says why"
            raise UnavailableError("PEER_UNAVAILABLE", text_) from None
        finally:
            target.unlink(missing_ok=True)

    def _copied(self, target: Path) -> Copy:
        now = self._clock.now()
        sqlite_file.copy(self._file, target)
        with sqlite_file.read_only(target) as connection:
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
            last = connection.execute(_LAST).scalar_one()
        return Copy(target.open("rb"), target.stat().st_size, revision, last, now)
