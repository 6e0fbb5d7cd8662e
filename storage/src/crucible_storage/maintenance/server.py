"""A database server that storage uses: read in one snapshot, for as long as it takes, while others write."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from crucible_rpc.errors import StartError
from crucible_storage.databases.base import Backend

NO_BACKUP = (
    "storage is on a database server: back it up with `pg_dump --format=custom`, restore it with `pg_restore` into an "
    "empty database while storage is stopped, and run `crucible storage check` then"
)


@contextmanager
def reading(backend: Backend) -> Iterator[Connection]:
    """A connection that cannot write, in a transaction that sees one state of the database and has no time limit.

    Raises:
        StartError: the server cannot be reached.
    """
    try:
        with backend.reader.connect() as connection, connection.begin():
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            yield connection
    except DBAPIError as error:
        raise StartError(f"{backend.place} cannot be read: {' '.join(str(error.orig).split())}") from None


def revision(backend: Backend) -> str:
    """The revision of its schema; empty when it has none."""
    with reading(backend) as connection:
        if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
            return ""
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
