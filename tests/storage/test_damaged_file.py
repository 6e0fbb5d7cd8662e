"""A database file that is damaged in the middle: one clear error for what cannot be read, and the rest goes on."""

import sqlite3
from contextlib import closing

import pytest

from crucible_rpc.errors import DataLossError, StartError
from crucible_storage import state
from tests.storage.world import storage

pytestmark = pytest.mark.database("sqlite")


def damage(file, table):
    """Overwrites the first page of a table."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as stream:
        stream.seek((page - 1) * size)
        stream.write(b"\xff" * size)


async def test_what_is_kept_in_a_damaged_page_is_a_clear_error_and_nothing_is_changed(tmp_path, clock):
    async with storage(tmp_path, clock=clock) as world:
        kept = await world.create()
        assert (await world.get(kept)).name == kept.name
    damage(tmp_path / state.FILE, "program")
    async with storage(tmp_path, clock=clock) as world:
        for call in (
            world.get(kept),
            world.create(),
            world.create(request_id="again"),
            world.create(request_id="again"),
        ):
            with pytest.raises(DataLossError, match="crucible storage check") as caught:
                await call
            assert caught.value.reason == "DATABASE_DAMAGED"
        await world.register()  # what needs nothing of that page goes on
        assert [event.evaluation for event in await world.events()] == [kept.name]
        assert world.service.database.queued == 1


def test_a_damaged_schema_at_the_start_is_one_clear_line(tmp_path):
    state.open_state(tmp_path, lambda notices: None)._lock.close()
    file = tmp_path / state.FILE
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff" * 1000)
    before = file.read_bytes()
    with pytest.raises(StartError, match="cannot be used: database disk image is malformed") as caught:
        state.open_state(tmp_path, lambda notices: None)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before
