"""`migrate`, `check` and `usage` of a storage on a database server, while it runs; backups are the server's own."""

import io

import pytest
from sqlalchemy import text

from crucible_rpc import errors, signing
from crucible_rpc.errors import StartError
from crucible_rpc.tls import ClientTls
from crucible_storage.maintenance.commands import Commands
from crucible_storage.maintenance.peer import Peer
from crucible_storage.migrations import HEAD
from tests.storage import world as worlds
from tests.storage.test_integrity import lives
from tests.storage.world import FakeClock

pytestmark = pytest.mark.database("postgresql")


@pytest.fixture
async def backend(world, tmp_path):
    """The database of a storage that runs and did all sorts of things."""
    await lives(world)
    made = worlds.DATABASES.backend(tmp_path / "state", world.clock)
    yield made
    made.dispose()


@pytest.fixture
def commands(backend, tmp_path):
    verifier = signing.Verifier.of(worlds.RECORDS.public_pem)
    nobody = Peer("127.0.0.1:1", ClientTls(tmp_path / "x", tmp_path / "x", tmp_path / "x"))
    return Commands(tmp_path / "state", verifier, nobody, FakeClock(), backend)


def quiet(progress):
    pass


async def test_a_storage_that_runs_is_checked_and_its_faults_are_named(world, backend, commands):
    verdict = await commands.check(20, quiet)
    assert verdict.findings.shown == []
    assert (verdict.progress.evaluations, verdict.progress.deleted, verdict.progress.records) == (8, 1, 3)
    with backend.writer.connect() as connection, connection.begin():
        for damage in (
            "UPDATE evaluation SET version = version + 1 WHERE seq = 1",
            "UPDATE output SET data = '\\x6a' WHERE evaluation_seq = (SELECT max(evaluation_seq) FROM output)",
            "DELETE FROM event WHERE position = (SELECT max(position) - 1 FROM event)",
            "UPDATE evaluation_count SET count = count + 1 WHERE state = 1",
            "UPDATE log_head SET position = position + 1",
        ):
            assert connection.execute(text(damage)).rowcount
    shown = (await commands.check(100, quiet)).findings.shown
    for expected in (
        "its row has version",
        "its kept stdout is not what",
        "the event log has a gap",
        "counted in state 1",
        "its head says",
    ):
        assert any(expected in line for line in shown), (expected, [*shown])


async def test_usage_says_where_the_bytes_are(commands):
    used = await commands.usage()
    assert used.database_bytes > sum(one.bytes for one in used.tables) > 0
    assert {one.tenant: one.evaluations for one in used.tenants}["t"] == 5
    assert len(used.largest) == 7
    assert used.free_disk_bytes is None


async def test_what_is_current_is_not_migrated(commands):
    assert commands.migrate() == (HEAD, HEAD)


async def test_backups_are_the_servers_own(world, commands):
    with pytest.raises(StartError, match="pg_dump"):
        await commands.backup(io.BytesIO())
    with pytest.raises(StartError, match="pg_restore"):
        commands.restore(io.BytesIO(), quiet)
    with pytest.raises(errors.FailedPreconditionError) as refused:
        await world.service.live.usage()
    assert refused.value.reason == "NO_DATABASE_FILE"
