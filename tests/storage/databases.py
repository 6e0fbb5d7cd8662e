"""Which database a test's storage uses: the file in its state folder, or a database of a real PostgreSQL server.

The server is started once per run. Each state folder of a test has a database of its own, copied from one that was
brought to the current schema once, so that a test that opens a folder again finds what it left.
"""

import functools
import itertools
import os
import tempfile
from pathlib import Path

import psycopg

from crucible_deploy.postgresql_server import PostgreSqlServer
from crucible_storage.clock import DatabaseClock, SystemClock
from crucible_storage.databases import FILE, choose
from crucible_storage.databases.base import Backend
from crucible_storage.state import prepare

_TEMPLATE = "crucible_template"


class SqliteFiles:
    """The embedded default."""

    name = "sqlite"

    def __init__(self):
        self._empty: set[str] = set()

    def url(self, folder, *, empty=False):
        if empty:
            self._empty.add(os.fspath(folder))
        return ""

    def backend(self, folder, clock=None) -> Backend:
        file = Path(folder) / FILE
        file.parent.mkdir(exist_ok=True, parents=True)
        if os.fspath(folder) not in self._empty and not file.exists():
            file.write_bytes(_sqlite_template())
        return choose("", file.parent, clock=clock)

    def clock(self):
        """Real time, as storage takes it."""
        return SystemClock()

    def environment(self, folder):
        return {}


@functools.cache
def _sqlite_template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        backend = choose("", Path(folder))
        prepare(backend)
        backend.dispose()
        return (Path(folder) / FILE).read_bytes()


class PostgreSqlDatabases:
    """The databases of one test on a server."""

    name = "postgresql"
    _numbers = itertools.count(1)

    def __init__(self, server: "TestServer"):
        self.server = server
        self._names: dict[str, str] = {}

    def url(self, folder, *, empty=False):
        """The database of a state folder; made at the first call, empty or with the current schema."""
        key = os.fspath(folder)
        if key not in self._names:
            self._names[key] = f"test_{next(self._numbers)}"
            self.server.create(self._names[key], "template0" if empty else _TEMPLATE)
        return self.server.postgresql.url(self._names[key])

    def share(self, *folders):
        """One database for several state folders."""
        self.url(folders[0])
        for folder in folders[1:]:
            self._names[os.fspath(folder)] = self._names[os.fspath(folders[0])]

    def backend(self, folder, clock=None) -> Backend:
        return choose(self.url(folder), Path(folder), clock=clock)

    def clock(self):
        """Real time, as storage takes it: the server's."""
        return DatabaseClock()

    def environment(self, folder):
        return {"CRUCIBLE_STORAGE_DATABASE_URL": self.url(folder)}

    def drop(self):
        for name in set(self._names.values()):
            self.server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class TestServer:
    """A server with the template of all tests' databases."""

    __test__ = False

    def __init__(self, postgresql: PostgreSqlServer):
        self.postgresql = postgresql
        self.create(_TEMPLATE, "template0")
        backend = choose(postgresql.url(_TEMPLATE), Path("/"))
        prepare(backend)
        backend.dispose()

    def create(self, name, template):
        # Copying files is quicker than logging every page where nothing is flushed.
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")

    def execute(self, statement):
        with psycopg.connect(self.postgresql.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)
