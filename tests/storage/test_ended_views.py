"""What has ended is remembered: bounded, the same for every reader, and never told of what is deleted or another's."""

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_rpc.errors import NotFoundError
from crucible_storage import views
from crucible_storage.ended_views import EndedViews
from tests.storage import output_world as o
from tests.storage import world as w
from tests.storage.world import storage


class Counted:
    """Remembers at most so many bytes, and how often it was asked."""

    def __init__(self, world, max_bytes=1 << 20):
        self.hits, self.misses, self.size = 0, 0, 0
        world.service.evaluations._ended = EndedViews(max_bytes, self)

    def remembered(self, hit, size):
        self.hits, self.misses, self.size = self.hits + hit, self.misses + (not hit), size


@pytest.fixture
def cache(world):
    return Counted(world)


@pytest.fixture
def put_together(monkeypatch):
    """The evaluations that were put together from their tables."""
    made, complete = [], views.complete

    def counted(connection, record):
        made.append(record.seq)
        return complete(connection, record)

    monkeypatch.setattr(views, "complete", counted)
    return made


async def test_what_has_ended_is_put_together_once_and_always_the_same(world, cache, put_together):
    run = await o.writes(world, b"out", b"err")
    first = await world.get(run)
    unchanged = pb.Evaluation.FromString(first.SerializeToString())
    first.tenant = "changed by who got it"
    assert await world.get(run) == await world.get(run) == unchanged
    assert await world.service.evaluations.wait("t", o.evaluation_id(run), 0) == unchanged
    assert (len(put_together), cache.hits, cache.misses) == (1, 3, 1)
    assert cache.size == unchanged.ByteSize()


async def test_what_goes_on_is_read_each_time(world, cache):
    run = await world.running()
    assert (await world.get(run)).state == pb.EVALUATION_STATE_RUNNING
    await o.tell(world, run, b"out")
    assert (await world.get(run)).stdout.preview == b"out"
    assert await world.report(w.report(run, w.finished(run, stdout=b"out"))) == []
    assert (await world.get(run)).state == pb.EVALUATION_STATE_SUCCEEDED
    assert (cache.hits, cache.misses) == (0, 1)


async def test_another_tenant_and_who_comes_after_a_deletion_find_nothing(world, cache):
    run = await o.writes(world, b"out")
    await world.get(run)
    with pytest.raises(NotFoundError):
        await world.get(run, tenant="u")
    await world.service.deletion.delete(o.evaluation_id(run), "key-1", "")
    with pytest.raises(NotFoundError):
        await world.get(run)
    assert cache.hits == 0


@pytest.mark.database("postgresql")
async def test_what_another_process_deleted_is_not_found(tmp_path, databases, clock):
    databases.share(tmp_path / "a", tmp_path / "b")
    async with storage(tmp_path / "a", clock=clock) as first, storage(tmp_path / "b", clock=clock) as second:
        cache = Counted(second)
        run = await o.writes(first, b"out")
        assert await second.get(run) == await second.get(run)
        assert cache.hits == 1
        await first.service.deletion.delete(o.evaluation_id(run), "key-1", "")
        with pytest.raises(NotFoundError):
            await second.get(run)


async def test_it_holds_as_many_bytes_as_it_may_and_drops_what_was_asked_for_longest_ago(world, put_together):
    runs = [await o.writes(world, bytes([number]) * 4000) for number in range(20)]
    big = await o.writes(world, code=bytes(20_000))
    size = (await world.get(runs[0])).ByteSize()
    cache = Counted(world, 17 * size)
    put_together.clear()
    for run in [*runs[:17], runs[0], *runs[17:]]:
        await world.get(run)
        assert cache.size <= 17 * size
    assert (cache.hits, len(put_together)) == (1, 20)
    await world.get(runs[0])
    assert cache.hits == 2
    await world.get(runs[1])
    assert (cache.hits, len(put_together)) == (2, 21)
    before = cache.size
    for _ in range(2):
        await world.get(big)
    assert (cache.hits, cache.size, len(put_together)) == (2, before, 23)


async def test_without_a_bound_nothing_is_remembered(world, put_together):
    cache = Counted(world, 0)
    run = await o.writes(world, b"out")
    assert await world.get(run) == await world.get(run)
    assert (len(put_together), cache.misses, cache.size) == (2, 0, 0)
