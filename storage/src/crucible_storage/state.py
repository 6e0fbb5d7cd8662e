"""The state folder, held by one process at a time, and the database: both checked before anything starts."""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from crucible_rpc.errors import StartError
from crucible_storage import faults
from crucible_storage.database import Database, Observer
from crucible_storage.databases import FILE, choose
from crucible_storage.databases.base import Backend
from crucible_storage.faults import Fault
from crucible_storage.migrations import is_current, tables_of_others
from crucible_storage.transaction import Notices

__all__ = ["FILE", "MIN_FREE_BYTES", "State", "open_state", "prepare"]

LOCK = "lock"
MIN_FREE_BYTES = 16 << 20
_FIXED_WAL_RESET = (3, 51, 3)
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class State:
    """An open state folder.

    Attributes:
        database: not yet started.
    """

    database: Database
    _lock: IO[bytes]

    async def close(self) -> None:
        """Closes the database, then lets the folder go."""
        await self.database.close()
        self._lock.close()


def open_state(
    folder: Path,
    publish: Callable[[Notices], None],
    observer: Observer | None = None,
    backend: Backend | None = None,
) -> State:
    """Takes the folder, brings the database to the current schema, and opens it.

    Args:
        folder: the state folder.
        publish: see `Database`.
        observer: see `Database`.
        backend: the database; None: the file in the folder.

    Raises:
        StartError: one line that says what is wrong with the folder or the database.
    """
    lock = _take(folder)
    try:
        if backend is None or not backend.shared:
            _check_room(folder)
            _warn_of_sqlite()
        backend = choose("", folder) if backend is None else backend
        prepare(backend)
        return State(Database(backend, publish, observer), lock)
    except BaseException:
        if backend is not None:
            backend.dispose()
        lock.close()
        raise


def _take(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / LOCK).open("ab")
    except OSError as error:
        raise StartError(f"the state folder {folder} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StartError(f"another storage process uses the state folder {folder}; stop it first") from None
    return lock


def _check_room(folder: Path) -> None:
    """Refuses to start where the first writes would fail."""
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if free < MIN_FREE_BYTES:
        raise StartError(
            f"the disk of the state folder {folder} is full: {free >> 20} MiB free, "
            f"storage needs at least {MIN_FREE_BYTES >> 20} MiB"
        )
    probe = folder / "probe"
    try:
        with probe.open("wb") as stream:
            stream.write(bytes(1 << 16))
            stream.flush()
            os.fsync(stream.fileno())
        probe.unlink()
    except OSError as error:
        raise StartError(f"the state folder {folder} cannot be written: {error.strerror}") from None


def _warn_of_sqlite() -> None:
    """SQLite before 3.51.3 can lose a commit when two connections write and checkpoint at once; here only one does."""
    if sqlite3.sqlite_version_info < _FIXED_WAL_RESET:
        _LOG.warning(
            "SQLite %s has the WAL-reset fault (mended in 3.51.3); it needs two writing connections, storage has one",
            sqlite3.sqlite_version,
        )


def prepare(backend: Backend) -> None:
    """Brings a database to the current schema.

    Raises:
        StartError: it cannot be used, or belongs to something else.
    """
    try:
        with backend.writer.connect() as connection, connection.begin():
            if not is_current(connection):
                _migrate(backend, connection)
    except Exception as error:
        if isinstance(error, DBAPIError) or faults.fault_of(error) is not None:
            raise StartError(f"the database {backend.place} cannot be used: {_cause(error)}") from None
        raise


def _migrate(backend: Backend, connection: Connection) -> None:
    backend.begin_migration(connection)
    if is_current(connection):  # another process was quicker
        return
    if others := tables_of_others(connection):
        text = f"{backend.place} is not a database of this storage: it has the table {others[0]!r}; name an empty one"
        raise StartError(text)
    from crucible_storage import migrate

    migrate.upgrade(connection)


def _cause(error: Exception) -> str:
    if faults.fault_of(error) is Fault.FULL:
        return "its disk is full"
    said = str(error.orig if isinstance(error, DBAPIError) else error)
    return " ".join(said.split())
