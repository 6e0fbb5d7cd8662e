"""An SQLite file that no storage process has open, or a copy of one that has: read, copied, made durable."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from crucible_rpc.errors import StartError
from crucible_storage import state
from crucible_storage.databases.sqlite import Sqlite


@contextmanager
def read_only(file: Path) -> Iterator[Connection]:
    """A connection that cannot write, in a transaction that sees one state of the file.

    Raises:
        StartError: the file cannot be opened or is no database.
    """

    def connect() -> sqlite3.Connection:
        connection = _open(file, "ro")
        connection.execute("PRAGMA query_only = ON")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")
            yield connection
    except (DBAPIError, sqlite3.Error) as error:
        raise StartError(f"the database {file} cannot be read: {_cause(error)}") from None
    finally:
        engine.dispose()


def copy(file: Path, target: Path) -> None:
    """Copies the database as it is at one moment, also while another connection of this process writes.

    The copy is one file without a write-ahead log. It has no free pages: nothing that was deleted is in it. And it is
    on the disk when this returns. Other readers and the writer are not held up; the write-ahead log cannot be
    emptied meanwhile.

    Args:
        file: the database.
        target: must not exist.

    Raises:
        sqlite3.Error: it cannot be read, or the disk is full.
    """
    with closing(_open(file, "ro")) as source:
        source.execute("VACUUM INTO ?", (str(target),))
    with closing(_open(target, "rw")) as made:
        made.execute("PRAGMA journal_mode = DELETE")
    sync(target)


def revision(file: Path) -> str:
    """The revision of a database's schema.

    Raises:
        StartError: it cannot be read, or is none of storage's.
    """
    with read_only(file) as connection:
        row = connection.execute(text("SELECT version_num FROM alembic_version")).fetchone()
    if row is None:
        raise StartError(f"the database {file} has no schema revision")
    return str(row[0])


def migrate(file: Path) -> None:
    """Brings a database to this version's schema, in one transaction, and leaves one file without a write-ahead log.

    Raises:
        StartError: it cannot be used, or was written by a later version.
    """
    backend = Sqlite(file)
    try:
        state.prepare(backend)
    finally:
        backend.dispose()
    with closing(_open(file, "rw")) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(file: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(file))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _cause(error: Exception) -> str:
    return str(error.orig if isinstance(error, DBAPIError) else error)
