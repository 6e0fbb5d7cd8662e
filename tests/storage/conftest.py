import os
import shutil
from pathlib import Path

import pytest

from crucible_deploy import postgresql_server
from crucible_deploy.postgresql_server import PostgreSqlServerError
from crucible_storage import database, sweeper
from tests.storage import world as worlds
from tests.storage.databases import PostgreSqlDatabases, SqliteFiles, TestServer
from tests.storage.world import FakeClock, storage

DATABASES = {"sqlite": "sqlite", "postgresql": pytest.param("postgresql", marks=pytest.mark.postgresql)}
MEMORY = Path("/dev/shm")
MUCH = 2 << 30


def pytest_generate_tests(metafunc):
    """Every test of a folder's storage runs on each database, but for those that say which they are about."""
    if "databases" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("database")
        chosen = [DATABASES[name] for name in (only.args if only else DATABASES)]
        metafunc.parametrize("databases", chosen, indirect=True)


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server of this run, in memory where there is room: to make and drop a database is 300 files.

    Without PostgreSQL root's tests fail with the reason, for `make test` installs it; `make test-unit` cannot.
    """
    try:
        in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MUCH
        with postgresql_server.running(folder=MEMORY if in_memory else None) as server:
            yield TestServer(server)
    except PostgreSqlServerError as error:
        if os.geteuid() != 0:
            pytest.skip(str(error))
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(autouse=True)
def databases(request, monkeypatch):
    """Which database `world.storage` uses for a folder."""
    monkeypatch.setattr(sweeper, "INTERVAL", 3600)  # tests sweep when they say so, however slow the machine is
    monkeypatch.setattr(database, "_LISTEN_SECONDS", 0.05)  # a storage that ends waits for its listener so long
    wanted = getattr(request, "param", "sqlite")  # unittest's classes are not parametrized: see `on_postgresql`
    if wanted == "sqlite":
        yield SqliteFiles()
        return
    chosen = PostgreSqlDatabases(request.getfixturevalue("postgresql"))
    monkeypatch.setattr(worlds, "DATABASES", chosen)
    yield chosen
    chosen.drop()


@pytest.fixture
def on_postgresql(postgresql, monkeypatch):
    """For a class of unittest's, which runs on SQLite otherwise."""
    chosen = PostgreSqlDatabases(postgresql)
    monkeypatch.setattr(worlds, "DATABASES", chosen)
    yield
    chosen.drop()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def world(tmp_path, clock, databases):
    async with storage(tmp_path / "state", clock=clock) as opened:
        yield opened
