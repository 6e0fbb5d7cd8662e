"""A PostgreSQL database, 15 or later, which several storage processes may share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool, QueuePool

from crucible_rpc.errors import StartError
from crucible_storage.databases.wire import Wire
from crucible_storage.prepared import WIRE

READERS = 4
OLDEST = 150000
CHANNEL = "crucible_storage"
SCHEMES = ("postgresql://", "postgres://")
_MIGRATION_LOCK = 0x6372756369626C65  # "crucible"
# What a group of this process waits for another's, what one statement may take, and how long a process that was stopped
# in the middle of its transaction may hold up the others.
_WRITER_SETTINGS = (
    "SET lock_timeout = '5s'; SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '10s'"
)
_READER_SETTINGS = "SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '60s'"
# An answer means that it is on the disk, whatever the server does for others; stricter settings stay.
_DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
# Only a server that can write is of use, and one that is gone is noticed within seconds.
_DEFAULTS = {
    "target_session_attrs": "read-write",
    "fallback_application_name": "crucible-storage",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
_TIME = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_NOTIFY = text("SELECT pg_notify(:channel, :text)")
_PRESENCE = 0x637275
_IS_GONE = text("SELECT pg_try_advisory_xact_lock(:space, :number)")
_LOCK = text("SELECT pg_advisory_xact_lock(:number)")


class PostgreSql:
    """See `Backend`.

    Args:
        url: as libpq reads it: several hosts, `sslmode`, `passfile`, a folder of Unix sockets as host.
        password_file: holds the password on its first line; read at each connection, so that it can be changed.
        told: called with the server's time, in µs since 1970, when a transaction that writes begins.

    Raises:
        StartError: the URL cannot be read. Its text is not told: it may hold a password.
    """

    shared = True
    readers = READERS

    def __init__(self, url: str, password_file: Path | None = None, told: Callable[[int], None] | None = None) -> None:
        if not url.startswith(SCHEMES):
            refusal = "the database URL must begin with postgresql://, or be unset for the file in the state folder"
            raise StartError(refusal)
        self._parameters = _parameters(url)
        self._password_file = password_file
        self._told = told
        self.place = _place(self._parameters)
        self.writer = self._engine(_WRITER_SETTINGS, poolclass=NullPool)
        self.reader = self._engine(_READER_SETTINGS, poolclass=QueuePool, pool_size=READERS, max_overflow=0)
        event.listen(self.writer, "begin", self._begin if told is not None else _begin)
        event.listen(self.reader, "begin", _begin_reading)
        event.listen(self.writer, "connect", _wire)
        event.listen(self.writer, "before_cursor_execute", _settle)
        event.listen(self.writer, "rollback", _abandon)

    def begin_migration(self, connection: Connection) -> None:
        """See `Backend`.

        Raises:
            StartError: the server or the database is not fit for storage.
        """
        version = connection.execute(text("SHOW server_version_num")).scalar_one()
        if int(version) < OLDEST:
            found = connection.execute(text("SHOW server_version")).scalar_one()
            raise StartError(f"{self.place} is PostgreSQL {found}; storage needs {OLDEST // 10000} or later")
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise StartError(f"{self.place} has the encoding {encoding}; make the database with ENCODING 'UTF8'")
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(_LOCK, {"number": _MIGRATION_LOCK})

    def announce(self, connection: Connection, text: str) -> None:
        """See `Backend`. At most 8000 bytes."""
        connection.execute(_NOTIFY, {"channel": CHANNEL, "text": text})

    def listener(self, process: int) -> "PostgreSqlListener":
        """See `Backend`."""
        return PostgreSqlListener(lambda: self._connect(_READER_SETTINGS), process)

    def is_gone(self, connection: Connection, process: int) -> bool:
        """See `Backend`. A process holds a lock under its number for as long as its listener is connected."""
        return bool(connection.execute(_IS_GONE, {"space": _PRESENCE, "number": process}).scalar_one())

    def dispose(self) -> None:
        """See `Backend`."""
        self.reader.dispose()
        self.writer.dispose()

    def _engine(self, settings: str, **pool: Any) -> Engine:
        # Transactions are begun by the listeners above, as on SQLite, so the driver is told to begin none.
        return create_engine(
            "postgresql+psycopg://", creator=lambda: self._connect(settings), use_native_hstore=False, **pool
        )

    def _connect(self, settings: str) -> "psycopg.Connection[Any]":
        parameters = dict(self._parameters)
        if self._password_file is not None:
            parameters["password"] = _password(self._password_file)
        connection = psycopg.connect(make_conninfo("", **parameters), autocommit=True)
        connection.execute(f"{settings}; {_DURABLE}", prepare=False)
        return connection

    def _begin(self, connection: Connection) -> None:
        raw: Any = connection.connection.dbapi_connection
        answers = raw.execute(f"BEGIN; {_TIME}", prepare=False)  # one trip for both
        answers.nextset()
        if self._told is not None:
            self._told(answers.fetchone()[0])


class PostgreSqlListener:
    """See `Listener`."""

    def __init__(self, connect: Callable[[], "psycopg.Connection[Any]"], process: int) -> None:
        self._connect = connect
        self._process = process
        self._present = False
        self._connection: psycopg.Connection[Any] | None = None

    def wait(self, seconds: float) -> list[str]:
        """See `Listener`."""
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.execute(f"LISTEN {CHANNEL}")
                self._present = False
            if not self._present:  # at once, unless the server has not noticed yet that an earlier connection is lost
                answer = self._connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (_PRESENCE, self._process))
                self._present = bool((answer.fetchone() or (False,))[0])
            return [heard.payload for heard in self._connection.notifies(timeout=seconds, stop_after=1)]
        except psycopg.Error:
            self.close()
            raise

    def close(self) -> None:
        """See `Listener`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _parameters(url: str) -> dict[str, Any]:
    try:
        found = conninfo_to_dict(url)
    except psycopg.Error:
        raise StartError(
            "the database URL cannot be read; it must look like postgresql://user@host:5432/database, "
            "with %-escapes for special characters"
        ) from None
    return _DEFAULTS | found


def _place(parameters: dict[str, Any]) -> str:
    host = parameters.get("host") or parameters.get("hostaddr") or parameters.get("service") or "its default host"
    name = parameters.get("dbname") or parameters.get("user") or "its default name"
    return f"the PostgreSQL database {name} on {host}"


def _password(file: Path) -> str:
    try:
        return file.read_text().split("\n", 1)[0]
    except (OSError, UnicodeDecodeError):
        raise psycopg.OperationalError(f"the password file {file} cannot be read") from None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _begin_reading(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")


def _wire(connection: "psycopg.Connection[Any]", record: Any) -> None:
    connection.prepare_threshold = None  # psycopg forgets all that is prepared, ours too, whenever it rolls back
    record.info[WIRE] = Wire(connection)


def _settle(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
    """Before SQLAlchemy runs a statement itself."""
    wire: Wire = connection.info[WIRE]
    wire.settle()
    if not statement.lstrip().startswith("SELECT"):
        wire.writes += 1


def _abandon(connection: Connection) -> None:
    wire: Wire = connection.info[WIRE]
    wire.abandon()
