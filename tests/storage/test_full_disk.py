"""A disk that is really full."""

import asyncio
import subprocess

import pytest
from sqlalchemy import text

from crucible_rpc.errors import ResourceExhaustedError, StartError
from crucible_storage import state
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


@pytest.mark.root
def test_a_read_only_state_folder_at_the_start_is_one_clear_line(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StartError, match="cannot be written: Read-only file system"):
        state.open_state(small_disk, lambda notices: None)


@pytest.mark.root
async def test_a_disk_that_fills_up_and_is_cleared_again_costs_nothing_that_was_accepted(small_disk):
    async with storage(small_disk / "state") as world:
        accepted = [(await world.create(code=bytes(10_000))).name for _ in range(20)]
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as stream:
            while True:
                try:
                    stream.write(bytes(1 << 16))
                except OSError:
                    break
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
