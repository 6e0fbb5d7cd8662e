"""`check` and `usage` know artifacts and output that was moved: each way to damage them is named."""

import io
import os
from pathlib import Path

import pytest

from crucible_rpc import signing
from crucible_rpc.tls import ClientTls
from crucible_storage.maintenance import tables
from crucible_storage.maintenance.commands import Commands
from crucible_storage.maintenance.peer import Peer
from tests.storage import artifact_world as a
from tests.storage import output_world as o
from tests.storage import world as w
from tests.storage.world import storage

pytestmark = pytest.mark.slow

VERIFIER = signing.Verifier.of(w.RECORDS.public_pem)
DATA = os.urandom(1000)
LARGE, LARGER = os.urandom(70_000), os.urandom(80_000)


class Place:
    """A storage that was stopped, with two evaluations that left files and one that was deleted."""

    def __init__(self, folder, databases):
        self.folder, self.databases = folder, databases
        nobody = Peer("127.0.0.1:1", ClientTls(Path("x"), Path("x"), Path("x")))
        shared = databases.backend(folder) if databases.name == "postgresql" else None
        self.commands = Commands(folder, VERIFIER, nobody, w.FakeClock(), shared)
        self.shared = shared

    async def faults(self, **options):
        verdict = await self.commands.check(20, lambda _: None, **options)
        return verdict.findings.shown

    def damage(self, statement):
        backend = self.databases.backend(self.folder)
        with backend.writer.connect() as connection, connection.begin():
            connection.exec_driver_sql(statement)
        backend.dispose()


@pytest.fixture
async def place(tmp_path, databases):
    folder = tmp_path / "state"
    async with storage(folder) as world:
        await a.ran(world, x=DATA, y=b"same")
        await a.ran(world, tenant="u", z=b"same")
        gone = await a.ran(world, tenant="u", x=b"gone")
        await world.service.deletion.delete(a.evaluation_id(gone), "key-1", "")
        cut = await world.running()
        await a.put(world, cut, "left", b"of a run that goes on")
    made = Place(folder, databases)
    yield made
    if made.shared is not None:
        made.shared.dispose()


async def test_whole_artifacts_are_found_whole_and_counted(place):
    assert await place.faults(digests=True) == []
    verdict = await place.commands.check(20, lambda _: None)
    assert verdict.progress.artifacts == 5
    used = await place.commands.usage()
    assert (used.artifacts.objects, used.artifacts.passing_bytes) == (5, 0)
    assert {one.tenant: one.artifact_bytes for one in used.tenants} == {"t": 1004, "u": 4}
    assert "artifacts 1.0 KiB in 5 objects" in tables.of(used)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM artifact WHERE path = 'x'", "its artifact 'x' is missing"),
        ("UPDATE artifact SET confirmed = 0 WHERE path = 'x'", "its artifact 'x' is missing"),
        ("UPDATE artifact SET total = 9 WHERE path = 'x'", "its artifact 'x' is not what the signed final record says"),
        ("UPDATE artifact SET path = 'w' WHERE path = 'x'", "1 artifacts of it are not in the signed final record"),
        ("UPDATE blob SET size = 9 WHERE size = 1000", "its artifact 'x' is not what the signed final record says"),
        ("UPDATE blob SET state = 3 WHERE size = 1000", "refers to no object of its tenant that is there"),
        ("UPDATE blob SET tenant = 'v' WHERE size = 1000", "refers to no object of its tenant that is there"),
        ("UPDATE artifact SET tenant = 'u' WHERE path = 'x'", "something of it belongs to another tenant"),
        ("UPDATE artifact SET confirmed = 1 WHERE path = 'left'", "listed by a signed record that is not there"),
    ],
)
async def test_rows_that_do_not_fit_are_named(place, statement, fault):
    place.damage(statement)
    assert any(fault in one for one in await place.faults())


async def test_objects_that_do_not_fit_are_named(place):
    [file] = [path for path in a.objects(place.folder) if path.stat().st_size == 1000]
    file.write_bytes(DATA[:-1] + b"?" if DATA[-1:] != b"?" else DATA[:-1] + b"!")
    assert await place.faults() == []
    [fault] = await place.faults(digests=True)
    assert fault == f"artifact store: the object t/{file.parent.name}/{file.name} has not the SHA-256 that was stored"
    file.write_bytes(b"short")
    [fault] = await place.faults()
    assert fault.endswith("has 5 bytes, 1000 were stored")
    file.unlink()
    [fault] = await place.faults(digests=True)
    assert fault.endswith("is missing")


@pytest.fixture
async def moved(tmp_path, databases):
    """A storage that was stopped: it had moved output of two evaluations, and not forgotten the last of the chunks."""
    folder = tmp_path / "state"
    async with storage(folder) as world:
        await o.writes(world, LARGE, b"short")
        await o.move(world)
        await o.writes(world, LARGER, LARGER)
        gone = await o.writes(world, DATA * 75)
        await o.move(world)
        await world.service.deletion.delete(o.evaluation_id(gone), "key-1", "")
    made = Place(folder, databases)
    made.damage("UPDATE large_output SET state = 2 WHERE size = 80000 AND stream = 2")
    yield made
    if made.shared is not None:
        made.shared.dispose()


async def test_moved_output_is_found_whole_and_counted(moved):
    assert await moved.faults(digests=True) == []
    used = await moved.commands.usage()
    [tenant] = used.tenants
    assert (tenant.output_bytes, tenant.moved_output_bytes) == (len(b"short"), 150_000)
    assert used.largest[0].bytes > 160_000
    assert "MOVED OUTPUT" in tables.of(used)


@pytest.mark.database("sqlite")
async def test_a_backup_of_a_database_whose_output_was_moved_is_whole_without_the_objects(moved):
    archive = io.BytesIO()
    await moved.commands.backup(archive)
    archive.seek(0)
    _, verdict = moved.commands.check_backup(archive, 20, lambda _: None)
    assert verdict.findings.shown == []


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM large_output", "its stdout of attempt 1 is neither in the database nor in the artifact store"),
        ("UPDATE large_output SET blob_seq = NULL", "its stdout of attempt 1 is neither in the database nor in"),
        ("UPDATE large_output SET stream = 2", "its stderr of attempt 1 was moved to an object that has other bytes"),
        ("UPDATE large_output SET attempt = 2", "output of attempt 2 was moved, and no event tells of any of stream 1"),
        ("UPDATE large_output SET tenant = 'u'", "something of it belongs to another tenant"),
        ("UPDATE blob SET sha256 = CAST(name AS bytes)", "its kept stdout is not what the signed final record says"),
        ("UPDATE blob SET size = 9", "its stdout of attempt 1 was moved to an object that has other bytes"),
        ("UPDATE blob SET state = 3", "output of it refers to no object of its tenant that is there"),
    ],
)
async def test_rows_of_moved_output_that_do_not_fit_are_named(moved, statement, fault):
    kind = "BLOB" if moved.databases.name == "sqlite" else "bytea"
    moved.damage(statement.replace("bytes", kind) + " WHERE size = 70000")
    assert any(fault in one for one in await moved.faults())


async def test_an_object_of_moved_output_that_is_lost_or_damaged_is_named(moved):
    [file] = [path for path in a.objects(moved.folder) if path.stat().st_size == 70_000]
    file.write_bytes(LARGE[::-1])
    assert await moved.faults() == []
    [fault] = await moved.faults(digests=True)
    assert fault.endswith(f"{file.name} has not the SHA-256 that was stored")
    file.unlink()
    [fault] = await moved.faults()
    assert fault == f"artifact store: the object t/{file.parent.name}/{file.name} is missing"
