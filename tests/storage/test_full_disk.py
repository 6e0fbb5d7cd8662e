"""A disk that is really full."""

import asyncio
import subprocess

import pytest
from sqlalchemy import text

from crucible_rpc.errors import ResourceExhaustedError, StartError
from crucible_storage import state, sweeper
from tests.storage.carried import carried
from tests.storage.world import storage

pytestmark = pytest.mark.database("sqlite")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "crucible-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Leaves no room; answers the file to be removed."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as stream:
        while True:
            try:
                stream.write(bytes(1 << 16))
            except OSError:
                return filler


@pytest.mark.root
def test_a_read_only_state_folder_at_the_start_is_one_clear_line(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StartError, match="cannot be written: Read-only file system"):
        state.open_state(small_disk, lambda notices: None)


@pytest.mark.root
async def test_a_disk_that_fills_up_and_is_cleared_again_costs_nothing_that_was_accepted(small_disk):
    async with storage(small_disk / "state") as world:
        accepted = [(await world.create(code=bytes(10_000))).name for _ in range(20)]
        filler = fill(small_disk)
        results = await asyncio.gather(*(world.create(code=bytes(300_000)) for _ in range(20)), return_exceptions=True)
        refused = [one for one in results if isinstance(one, Exception)]
        assert refused
        assert {(type(one), one.reason) for one in refused} == {(ResourceExhaustedError, "STORAGE_FULL")}
        accepted += [one.name for one in results if not isinstance(one, Exception)]
        assert (await world.get(accepted[0])).name == accepted[0]  # reading goes on
        filler.unlink()
        accepted.append((await world.create()).name)
        assert [event.evaluation for event in await world.events()] == accepted
        check = "PRAGMA integrity_check"
        assert await world.service.database.read(lambda one: one.execute(text(check)).scalar_one()) == "ok"
    async with storage(small_disk / "state") as world:
        assert [event.evaluation for event in await world.events()] == accepted


@pytest.mark.root
async def test_work_goes_on_by_itself_when_a_full_disk_is_freed(small_disk, tmp_path, databases, monkeypatch):
    monkeypatch.setattr(sweeper, "INTERVAL", 0.1)
    async with carried(tmp_path, databases, state=small_disk / "state") as stack, asyncio.timeout(60):
        await stack.create(20)  # whose reports and renewals meet the full disk
        filler = fill(small_disk)
        creating = asyncio.create_task(stack.create(20))
        while len(stack.refused) < 40:  # noqa: ASYNC110  # each of them twice at least
            await asyncio.sleep(0.01)
        assert {(type(one), one.reason) for one in stack.refused} == {(ResourceExhaustedError, "STORAGE_FULL")}
        filler.unlink()
        await creating
        await stack.ended()
        await stack.judge(databases.backend(small_disk / "state"))
