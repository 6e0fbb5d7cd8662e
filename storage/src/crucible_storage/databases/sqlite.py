"""One SQLite file, used by nobody else: one connection that writes, and a few that cannot."""

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection
from sqlalchemy.pool import QueuePool, StaticPool

READERS = 2
_CACHE_KIB = 8192


class Sqlite:
    """See `Backend`. Statements cost no trip anywhere, and no process but this one writes."""

    shared = False
    readers = READERS

    def __init__(self, file: Path) -> None:
        self.place = str(file)
        self.writer = _writer_engine(file)
        self.reader = _reader_engine(file)

    def begin_migration(self, connection: Connection) -> None:
        """See `Backend`: whoever writes has the only lock that there is."""

    def announce(self, connection: Connection, text: str) -> None:
        """See `Backend`: nobody else is there."""

    def listener(self, process: int) -> None:
        """See `Backend`."""

    def is_gone(self, connection: Connection, process: int) -> bool:  # noqa: ARG002  # the file is one process's
        """See `Backend`."""
        return True

    def dispose(self) -> None:
        """See `Backend`."""
        self.reader.dispose()
        self.writer.dispose()


def _writer_engine(file: Path) -> Engine:
    """Transactions take the write lock when they begin."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=0)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _reader_engine(file: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(file))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB // READERS}")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=READERS, max_overflow=0)
    event.listen(engine, "begin", _begin)
    return engine


def _begin_immediate(connection: Connection) -> None:
    _by_the_driver(connection, "BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    _by_the_driver(connection, "BEGIN")


def _by_the_driver(connection: Connection, statement: str) -> None:
    """SQLAlchemy's own way of running a text costs several times what SQLite does with these."""
    raw: Any = connection.connection.dbapi_connection
    raw.execute(statement)
