"""`migrate`, `check`, `backup`, `restore`, `usage`: on a stopped storage and on one that runs, and what they refuse."""

import asyncio
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from alembic import command

from crucible_rpc import errors, pki, signing
from crucible_rpc.errors import StartError
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ClientTls, ServerTls
from crucible_storage import migrate, state
from crucible_storage.databases.sqlite import Sqlite
from crucible_storage.maintenance import live, lock
from crucible_storage.maintenance.archive import DATABASE, MANIFEST
from crucible_storage.maintenance.commands import Commands
from crucible_storage.maintenance.peer import Peer
from crucible_storage.migrations import HEAD
from crucible_storage.permissions import PERMISSIONS
from crucible_storage.serving import add_services
from tests.storage import world as w
from tests.storage.test_integrity import lives
from tests.storage.world import FakeClock, storage

VERIFIER = signing.Verifier.of(w.RECORDS.public_pem)

pytestmark = [pytest.mark.database("sqlite"), pytest.mark.slow]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    authority = pki.make_ca()
    made = pki.issue(authority, "storage")
    for name, pem in (
        ("ca.crt", authority.cert_pem),
        ("storage.crt", made.cert_pem),
        ("storage.key", made.key_pem),
        ("tickets.key", w.TICKETS.private_pem),
        ("records.pub", w.RECORDS.public_pem),
    ):
        (folder / name).write_bytes(pem)
    return folder


@pytest.fixture
def commands(tmp_path, certificates):
    """Commands over a state folder; `listen` is where a storage that runs serves."""

    def made(folder=tmp_path / "state", listen="127.0.0.1:1"):
        tls = ClientTls(certificates / "storage.crt", certificates / "storage.key", certificates / "ca.crt")
        return Commands(folder, VERIFIER, Peer(listen, tls), FakeClock())

    return made


@asynccontextmanager
async def serving(world, certificates):
    tls = ServerTls(certificates / "storage.crt", certificates / "storage.key", certificates / "ca.crt")
    server = Server("storage", "127.0.0.1:0", tls, authentication=PeerPermissions(PERMISSIONS))
    add_services(server, world.service)
    await server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.drain()


@pytest.fixture
async def stopped(tmp_path):
    """The state folder of a storage that did all sorts of things and was stopped."""
    async with storage(tmp_path / "state") as world:
        await lives(world)
    return tmp_path / "state"


def quiet(progress):
    pass


async def test_nothing_that_was_deleted_is_in_a_backup(stopped, commands):
    word = b"a secret " * 1000
    with closing(sqlite3.connect(stopped / state.FILE)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")  # as SQLite does by itself, but not Debian's
        connection.execute("INSERT INTO setting VALUES ('deleted', '*', ?)", (word,))
        connection.commit()
        connection.execute("DELETE FROM setting WHERE name = 'deleted'")
        connection.commit()
    word = word[:100]
    assert word in (stopped / state.FILE).read_bytes()  # or this shows nothing
    archive, _ = await backed_up(commands())
    assert word not in archive


def rows(file):
    """Everything that a database holds."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in tables}


async def backed_up(commands):
    out = io.BytesIO()
    manifest = await commands.backup(out)
    return out.getvalue(), manifest


async def test_what_was_backed_up_is_what_is_restored(stopped, commands, tmp_path):
    archive, manifest = await backed_up(commands())
    (tmp_path / "new").mkdir()
    restored, verdict = commands(tmp_path / "new").restore(io.BytesIO(archive), quiet)
    assert restored == manifest
    assert verdict.whole
    assert verdict.progress.evaluations == 8
    assert rows(tmp_path / "new" / state.FILE) == rows(stopped / state.FILE)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["crucible.sqlite3", "lock"]
    async with storage(tmp_path / "new") as world:  # and it goes on where it was
        assert world.service.database.last_position == manifest.last_position
        await world.create()


async def test_a_backup_is_a_plain_archive_of_one_file_and_its_manifest(stopped, commands, tmp_path):
    archive, manifest = await backed_up(commands())
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert opened.getnames() == [DATABASE, MANIFEST]
        assert json.load(opened.extractfile(MANIFEST))["sha256"] == manifest.sha256
        opened.extract(DATABASE, tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out" / DATABASE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("delete",)]


async def test_a_storage_that_runs_and_writes_is_backed_up_and_checked_whole(tmp_path, commands, certificates):
    async with storage(tmp_path / "state") as world, serving(world, certificates) as listen:
        await lives(world)
        acknowledged = [(await world.create()).name for _ in range(20)]
        last = world.service.database.last_position
        stopping = asyncio.Event()

        async def writes():
            while not stopping.is_set():
                await world.create(code=bytes(20_000))

        writers = [asyncio.create_task(writes()) for _ in range(4)]
        asked = commands(listen=listen)
        archive, manifest = await backed_up(asked)
        verdict = await asked.check(20, quiet)
        stopping.set()
        await asyncio.gather(*writers)
        assert verdict.findings.shown == []
        assert verdict.progress.of >= 28
        assert last <= manifest.last_position <= world.service.database.last_position
        assert not list((tmp_path / "state").glob("*.partial*"))
    (tmp_path / "new").mkdir()
    _, verdict = commands(tmp_path / "new").restore(io.BytesIO(archive), quiet)
    assert verdict.findings.shown == []
    async with storage(tmp_path / "new") as world:
        for name in acknowledged:
            await world.get(name)


async def test_one_copy_at_a_time_and_only_with_room(tmp_path, monkeypatch):
    async with storage(tmp_path / "state") as world:
        async with world.service.live.copy() as copy:
            with pytest.raises(errors.FailedPreconditionError) as busy:
                async with world.service.live.copy():
                    pass
            assert busy.value.reason == "BACKUP_RUNNING"
            assert len(copy.stream.read()) == copy.size
        monkeypatch.setattr(live, "_MARGIN", 1 << 60)
        with pytest.raises(errors.ResourceExhaustedError) as full:
            async with world.service.live.copy():
                pass
        assert full.value.reason == "STORAGE_FULL"
        monkeypatch.undo()
        (tmp_path / "state" / "copy.partial").write_bytes(b"left by a process that was killed")
        async with world.service.live.copy():
            assert not (tmp_path / "state" / "copy.partial").exists()  # it has no name that could be left


async def test_a_caller_who_leaves_leaves_no_copy(tmp_path):
    async with storage(tmp_path / "state") as world:

        async def asks():
            async with world.service.live.copy():
                await asyncio.Event().wait()

        for delay in (0, 0.001, 0.2):
            task = asyncio.create_task(asks())
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with world.service.live.copy() as copy:
                assert copy.size


def cut(archive):
    return archive[: len(archive) // 2]


def without_manifest(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return archive[: opened.getmember(MANIFEST).offset]


def flipped(archive):
    return archive[:9000] + bytes([archive[9000] ^ 1]) + archive[9001:]


def other(archive):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        made.addfile(tarfile.TarInfo("../../etc/passwd"))
    return out.getvalue()


def link(archive):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        info = tarfile.TarInfo(DATABASE)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(info)
    return out.getvalue()


def of_a_later_format(archive):
    return archive.replace(b'"format": 1', b'"format": 9')


def with_more(archive):
    end = archive.rstrip(b"\0")
    end += bytes(-len(end) % 512)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        made.addfile(tarfile.TarInfo("more"))
    return end + out.getvalue()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (cut, "cut short"),
        (without_manifest, "it lacks manifest.json"),
        (flipped, "it has not the SHA-256|not the SHA-256 that its manifest says"),
        (other, "it lacks crucible.sqlite3"),
        (link, "it lacks crucible.sqlite3"),
        (of_a_later_format, "the backup has the format 9"),
        (with_more, "more than a database and its manifest"),
        (lambda archive: b"", "no backup of storage"),
        (lambda archive: b"no archive at all" * 1000, "no backup of storage"),
    ],
)
async def test_a_backup_that_is_damaged_is_one_clear_line_and_changes_nothing(
    stopped, commands, tmp_path, damage, line
):
    archive, _ = await backed_up(commands())
    (tmp_path / "new").mkdir()
    for asked in (
        lambda: commands(tmp_path / "new").restore(io.BytesIO(damage(archive)), quiet),
        lambda: commands(tmp_path / "new").check_backup(io.BytesIO(damage(archive)), 20, quiet),
    ):
        with pytest.raises(StartError, match=line):
            asked()
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {"lock"}


async def test_a_backup_of_a_database_that_is_not_whole_is_not_restored(stopped, commands, tmp_path):
    with closing(sqlite3.connect(stopped / state.FILE)) as connection, connection:
        connection.execute("UPDATE evaluation SET version = version + 1 WHERE seq = 1")
    archive, _ = await backed_up(commands())
    _, verdict = commands().check_backup(io.BytesIO(archive), 20, quiet)
    assert not verdict.whole
    (tmp_path / "new").mkdir()
    _, verdict = commands(tmp_path / "new").restore(io.BytesIO(archive), quiet)
    assert "its row has version" in verdict.findings.shown[0]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["lock"]


async def test_a_database_that_is_there_is_never_restored_over(stopped, commands):
    archive, _ = await backed_up(commands())
    before = rows(stopped / state.FILE)
    with pytest.raises(StartError, match="has a database already"):
        commands().restore(io.BytesIO(archive), quiet)
    (stopped / state.FILE).rename(stopped / "elsewhere")
    (stopped / f"{state.FILE}-wal").write_bytes(b"of another database")
    with pytest.raises(StartError, match="has a database already"):
        commands().restore(io.BytesIO(archive), quiet)
    assert rows(stopped / "elsewhere") == before


async def test_what_needs_a_stopped_storage_is_refused_while_one_runs(tmp_path, commands):
    async with storage(tmp_path / "state"):
        with pytest.raises(StartError, match="migrating needs it stopped"):
            commands().migrate()
        with pytest.raises(StartError, match="restoring needs it stopped"):
            commands().restore(io.BytesIO(), quiet)
        with pytest.raises(StartError, match="storage runs, and does not do this now"):
            await commands().usage()  # nothing listens where it should


async def test_storage_cannot_start_while_a_command_works(tmp_path, stopped):
    with lock.stopped(stopped) as alone:
        assert alone
        with pytest.raises(StartError, match="another storage process uses"):
            state.open_state(stopped, lambda notices: None)


def old(folder):
    """A database of the first version."""
    folder.mkdir()
    backend = Sqlite(folder / state.FILE)
    with backend.writer.connect() as connection, connection.begin():
        command.upgrade(migrate.config(connection), "0001")
    backend.dispose()


async def test_an_old_database_is_migrated_on_its_own_and_from_a_backup(tmp_path, commands):
    old(tmp_path / "state")
    with pytest.raises(StartError, match="crucible storage migrate"):
        await commands().check(20, quiet)
    archive, manifest = await backed_up(commands())
    assert manifest.revision == "0001"
    assert commands().migrate() == ("0001", HEAD)
    assert commands().migrate() == (HEAD, HEAD)
    assert (await commands().check(20, quiet)).whole
    (tmp_path / "new").mkdir()
    assert commands(tmp_path / "new").restore(io.BytesIO(archive), quiet)[1].whole
    assert rows(tmp_path / "new" / state.FILE) == rows(tmp_path / "state" / state.FILE)


async def test_usage_says_where_the_bytes_are_stopped_or_not(tmp_path, commands, certificates):
    async with storage(tmp_path / "state") as world, serving(world, certificates) as listen:
        await lives(world)
        large = await world.create("big", code=bytes(200_000))
        await world.service.sealer.seal()  # or it would do so between the two looks
        running = await commands(listen=listen).usage()
    used = await commands().usage()
    assert (used.tables, used.tenants, used.largest) == (running.tables, running.tenants, running.largest)
    assert [(one.name, one.tenant) for one in used.largest[:1]] == [(large.name, "big")]
    assert used.largest[0].bytes > 200_000
    tenants = {one.tenant: one for one in used.tenants}
    assert used.tenants[0].tenant == "big"
    assert tenants["t"].evaluations == 5
    assert tenants["t"].output_bytes == len(b"hello world" + b"oh" + b"a")
    tables = {one.name: one for one in used.tables}
    assert tables["evaluation"].rows == 9
    assert used.tables[0].name == "program"
    assert 200_000 < sum(one.bytes for one in used.tables) <= used.database_bytes
    assert used.free_disk_bytes > 0


# The process, as `crucible storage` starts it.


def run(certificates, folder, *arguments, data=b"", **changes):
    environment = {
        "CRUCIBLE_STORAGE_STATE": str(folder),
        "CRUCIBLE_STORAGE_TLS_CERT": str(certificates / "storage.crt"),
        "CRUCIBLE_STORAGE_TLS_KEY": str(certificates / "storage.key"),
        "CRUCIBLE_STORAGE_TLS_CA": str(certificates / "ca.crt"),
        "CRUCIBLE_STORAGE_TICKETS_KEY": str(certificates / "tickets.key"),
        "CRUCIBLE_STORAGE_HEADS_KEY": str(certificates / "heads.key"),
        "CRUCIBLE_STORAGE_PUBLIC_KEYS": str(certificates / "public"),
        "CRUCIBLE_STORAGE_RECORDS_PUB": str(certificates / "records.pub"),
        **changes,
    }
    command = [sys.executable, "-m", "crucible_storage.maintenance", *arguments]
    return subprocess.run(command, input=data, env=environment, capture_output=True, timeout=60, check=False)


async def test_the_commands_as_processes(stopped, certificates, tmp_path):
    backup = run(certificates, stopped, "backup")
    assert backup.returncode == 0
    assert b"SHA-256" in backup.stderr
    (tmp_path / "new").mkdir()
    ran = run(certificates, tmp_path / "new", "restore", data=backup.stdout)
    assert (ran.returncode, b"restored a database" in ran.stdout) == (0, True)
    assert ran.stdout.startswith(b"whole: 8 evaluations (1 deleted)")
    assert b"LARGEST" in run(certificates, tmp_path / "new", "usage").stdout
    with closing(sqlite3.connect(stopped / state.FILE)) as connection, connection:
        connection.execute("UPDATE evaluation SET version = version + 1")
    ran = run(certificates, stopped, "check", "--json", "--faults", "2")
    told = json.loads(ran.stdout)
    assert (ran.returncode, told["whole"], told["progress"]["evaluations"]) == (1, False, 8)
    assert len(told["findings"]["shown"]) == 2 < told["findings"]["total"]
    assert b"alembic" not in ran.stderr


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (shutil.rmtree, "there is no state folder"),
        (lambda folder: (folder / state.FILE).unlink(), "there is no database"),
        (lambda folder: (folder / state.FILE).write_bytes(b"not a database" * 1000), "file is not a database"),
    ],
)
async def test_a_database_that_cannot_be_used_is_one_clear_line(tmp_path, commands, spoil, line):
    folder = tmp_path / "state"
    old(folder)
    spoil(folder)
    asked = commands()
    for attempt in (asked.check(20, quiet), asked.usage(), asked.backup(io.BytesIO())):
        with pytest.raises(StartError, match=line):
            await attempt
    with pytest.raises(StartError, match=line):
        asked.migrate()


def test_a_database_of_a_later_version_is_one_clear_line(certificates, tmp_path):
    old(tmp_path / "state")
    with closing(sqlite3.connect(tmp_path / "state" / state.FILE)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = Path(tmp_path / "state" / state.FILE).read_bytes()
    ran = run(certificates, tmp_path / "state", "migrate")
    assert ran.returncode == 1
    assert b"schema revision 9999, which this version does not know" in ran.stderr
    assert Path(tmp_path / "state" / state.FILE).read_bytes()[:16] == before[:16]
    assert rows(tmp_path / "state" / state.FILE)["alembic_version"] == [("9999",)]


def test_a_missing_key_is_one_clear_line(certificates, tmp_path):
    ran = run(certificates, tmp_path, "check", CRUCIBLE_STORAGE_RECORDS_PUB="/nowhere")
    assert (ran.returncode, ran.stderr) == (
        1,
        b"crucible-storage: cannot read the key /nowhere: No such file or directory\n",
    )
