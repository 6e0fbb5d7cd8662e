"""`integrity` with batches: a whole database with them is found whole, and each way to damage one is named."""

import asyncio
import shutil
from datetime import timedelta

import pytest

from crucible_storage import state
from tests.storage.batch_world import ANYWAY, BatchWorld, item
from tests.storage.test_integrity import checked, damage, names
from tests.storage.world import storage

pytestmark = [pytest.mark.database("sqlite"), pytest.mark.slow]


async def lives(world):
    """Batches of each kind; the first has an item of each end."""
    await world.register()
    batches = BatchWorld(world)
    items = [
        item(key="good"),
        item(key="bad", after=["good"]),
        item(key="skipped", after=["bad"]),
        item(key="anyway", after=["skipped"], on_failure=ANYWAY),
        item(key="last", after=["anyway"], on_failure=ANYWAY),
    ]
    mixed = await batches.create(items)
    for key, code in (("good", 0), ("bad", 1), ("anyway", 0)):
        assert await batches.run_next(mixed, code) == [key]
    held = await batches.create([item(), item(after=["0"])], complete=False, request_id="r2", start_when_complete=True)
    cancelled = await batches.create([item(key="a"), item(key="b", after=["a"])], request_id="r3")
    await batches.cancel(cancelled)
    await batches.settled()
    gone = await batches.create([item()], request_id="r4")
    await batches.cancel(gone)
    await batches.settled()
    [one] = (await batches.evaluations(gone)).values()
    await world.service.deletion.delete(one.name.removeprefix("evaluations/"), "key-9", "asked to")
    await world.create()
    assert (await batches.get(held)).progress.waiting == 2
    world.clock.advance(timedelta(seconds=1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a database with batches, closed."""
    folder = tmp_path_factory.mktemp("whole")

    async def made():
        async with storage(folder / "state") as world:
            await lives(world)

    asyncio.run(made())
    return folder / "state" / state.FILE


@pytest.fixture
def file(whole, tmp_path):
    return shutil.copy(whole, tmp_path / "copy.sqlite3")


def test_a_whole_database_is_found_whole(whole):
    verdict = checked(whole)
    assert verdict.findings.shown == []
    assert verdict.progress.evaluations == 11
    assert verdict.progress.deleted == 1


ITEM = "(SELECT evaluation_seq FROM batch_item WHERE key = '{}')"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE batch_count SET count = count + 1 WHERE kind = 5", "2 items are counted as of kind 5, there are 1"),
        ("DELETE FROM batch_count WHERE kind = 7", "0 items are counted as of kind 7, there are 1"),
        ("UPDATE batch_count SET count = count - 1 WHERE kind = 0", "1 items are counted as of kind 0, there are 2"),
        ("UPDATE batch SET items = items + 1 WHERE seq = 1", "its row says that it has 6 items, there are 5"),
        ("UPDATE evaluation SET batch = NULL WHERE seq = 1", "its row names another batch"),
        ("UPDATE evaluation SET batch = NULL WHERE seq = 1", "spec or batch is not what its first event tells"),
        ("UPDATE batch SET tenant = 'z' WHERE seq = 1", "its row names another batch"),
        ("DELETE FROM batch WHERE seq = 2", "its row names another batch"),
        ("UPDATE batch_item SET end_kind = 6 WHERE end_kind = 7", "0 items are counted as of kind 6, there are 1"),
        ("UPDATE batch_item SET end_kind = 4 WHERE end_kind = 7", "its batch has another end of it than its row"),
        ("UPDATE batch_item SET end_kind = NULL WHERE key = 'good'", "its batch has another end of it than its row"),
        ("UPDATE batch_item SET end_position = 1 WHERE key = 'bad'", "its batch has another end of it than its row"),
        (f"UPDATE evaluation SET blocked = 1 WHERE seq = {ITEM.format('last')}", "it waits for 1 things, and 0 are"),
        ("UPDATE evaluation SET blocked = 1 WHERE blocked = 2", "it waits for 1 things, and 2 are stored"),
        ("DELETE FROM batch_dependency", "it waits for 2 things, and 1 are stored"),
        ("DELETE FROM batch_item WHERE key = 'good'", "its row names another batch"),
    ],
)
def test_damage_is_named(file, change, named):
    damage(file, change)
    names(file, named)
