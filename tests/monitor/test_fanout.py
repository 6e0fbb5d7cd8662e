import pytest

from crucible.evaluation.v1 import event_pb2
from crucible_monitor.fanout import Bounds, Fanout
from crucible_rpc.errors import UnavailableError


def event(position, evaluation="evaluations/a", tenant="t", size=0):
    chunk = event_pb2.OutputChunk(data=b"x" * size)
    return event_pb2.Event(position=position, evaluation=evaluation, tenant=tenant, output=chunk)


async def test_only_watchers_of_the_evaluation_and_of_its_tenant_get_an_event():
    fanout = Fanout(Bounds())
    with (
        fanout.subscribe("evaluations/a", "t") as own,
        fanout.subscribe("evaluations/a", "u") as foreign,
        fanout.subscribe("evaluations/b", "t") as other,
    ):
        fanout.publish(event(1))
        assert (await own.next()).position == 1
        assert foreign.queued_bytes == other.queued_bytes == 0


async def test_queue_of_too_many_events_is_freed_at_once():
    fell = []
    fanout = Fanout(Bounds(events=3), lambda: fell.append(1))
    with fanout.subscribe("evaluations/a", "t") as slow:
        for position in range(1, 6):
            fanout.publish(event(position))
        assert fell == [1]
        assert fanout.queued_bytes == 0
        assert await slow.next() is None


async def test_queue_of_too_many_bytes_is_freed_at_once_but_one_large_event_passes():
    fanout = Fanout(Bounds(bytes=1000))
    with fanout.subscribe("evaluations/a", "t") as slow:
        fanout.publish(event(1, size=5000))
        assert (await slow.next()).position == 1
        fanout.publish(event(2, size=900))
        fanout.publish(event(3, size=900))
        assert await slow.next() is None


async def test_beyond_the_total_the_one_with_most_waiting_falls_behind():
    fanout = Fanout(Bounds(bytes=4000, total_bytes=5000))
    with fanout.subscribe("evaluations/a", "t") as large, fanout.subscribe("evaluations/b", "t") as small:
        fanout.publish(event(1, size=3000))
        fanout.publish(event(2, "evaluations/b", size=1000))
        fanout.publish(event(3, "evaluations/b", size=1500))
        assert large.fell_behind
        assert not small.fell_behind
        assert (await small.next()).position == 2
    assert fanout.queued_bytes == 0
    assert fanout.watchers == 0


async def test_closed_fanout_delivers_what_waits_then_says_that_it_stops():
    fanout = Fanout(Bounds())
    with fanout.subscribe("evaluations/a", "t") as watcher:
        fanout.publish(event(1))
        fanout.close()
        assert (await watcher.next()).position == 1
        with pytest.raises(UnavailableError, match="SHUTTING_DOWN"):
            await watcher.next()
    with pytest.raises(UnavailableError), fanout.subscribe("evaluations/a", "t"):
        pass
