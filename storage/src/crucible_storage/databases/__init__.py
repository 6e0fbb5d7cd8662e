"""The databases that storage runs on, each behind the same seam; everything else is one code."""

from pathlib import Path

from crucible_storage.clock import Clock, DatabaseClock
from crucible_storage.databases.base import Backend
from crucible_storage.databases.sqlite import Sqlite

FILE = "crucible.sqlite3"


def choose(url: str, folder: Path, password_file: Path | None = None, clock: Clock | None = None) -> Backend:
    """The database that a URL names; without one, the file in the state folder.

    Args:
        url: `postgresql://…` as libpq reads it, or empty.
        folder: the state folder.
        password_file: holds the password for the URL, instead of the URL.
        clock: a `DatabaseClock` is told the database's time.

    Raises:
        StartError: the URL names no database that storage knows.
    """
    if not url:
        return Sqlite(folder / FILE)
    # psycopg and SQLAlchemy's dialect for it are some megabytes: only who uses them loads them.
    from crucible_storage.databases.postgresql import PostgreSql

    return PostgreSql(url, password_file, clock.told if isinstance(clock, DatabaseClock) else None)
