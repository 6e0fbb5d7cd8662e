"""Gateway and monitor together: what a public watcher sees when monitor is the real one."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1.behaviour_update_pb2 import ACTION_KIND_PROBES, BehaviourUpdate
from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible_monitor.__main__ import build
from crucible_monitor.event_log import StorageEventLog
from crucible_monitor.settings import Settings
from crucible_rpc.channel import connect
from crucible_rpc.errors import NotFoundError
from tests.gateway.conftest import OTHER_KEY
from tests.monitor.fake_log_servicer import FakeEventLog, fake_storage, name, until


@pytest.fixture
def log():
    return FakeEventLog()


@pytest.fixture
async def monitor(keys, log, resources):
    storage = await resources.enter_async_context(fake_storage(keys, log))
    own = Settings(*keys.files("monitor"), listen="127.0.0.1:0", storage=f"127.0.0.1:{storage.port}", watcher_events=32)
    channel = await resources.enter_async_context(connect(own.storage, keys.client("monitor"), "storage"))
    registry = CollectorRegistry()
    server, tail = build(own, StorageEventLog(channel), registry)
    port = await server.start()
    resources.push_async_callback(server.drain, timedelta(0))
    following = asyncio.ensure_future(tail.run())
    await until(lambda: tail.connected)
    yield SimpleNamespace(process="monitor", address=f"127.0.0.1:{port}", tail=tail, registry=registry)
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


def watch(client, evaluation, after=0):
    request = api.WatchEvaluationRequest(name=evaluation, after_position=after)
    return aiter(client.evaluations.WatchEvaluation(request))


async def test_slow_public_reader_is_told_and_gets_every_event_once_after_resuming(client, monitor, log):
    log.output(name(1))
    call = watch(client, name(1))
    seen = [(await anext(call)).event.position]
    for _ in range(2000):
        log.output(name(1), b"x" * 65_536)
        await until(lambda: monitor.tail.position == len(log.events))
        if monitor.registry.get_sample_value("crucible_watchers_fell_behind_total"):
            break
    log.end(name(1))
    resumes = 0
    async with asyncio.timeout(30):
        while True:
            last = None
            async for answer in call:
                if answer.HasField("event"):
                    seen.append(answer.event.position)
                else:
                    last = answer.fell_behind.resume_after_position
            if last is None:
                break
            assert last == seen[-1]
            resumes += 1
            call = watch(client, name(1), last)
    assert resumes >= 1
    assert seen == [event.position for event in log.events]


async def test_what_a_program_tries_reaches_a_public_watcher_before_the_end_and_again_in_a_replay(client, monitor, log):
    log.output(name(1))
    live = watch(client, name(1))
    await anext(live)
    told = BehaviourUpdate(sequence=1, observation=ev.OBSERVATION_OBSERVED)
    told.actions.add(kind=ACTION_KIND_PROBES, example=r"/etc/\x1b[2J", count=1).since_start.FromMilliseconds(7)
    log.append(name(1), behaviour=told)
    assert (await anext(live)).event.behaviour == told
    log.end(name(1))
    assert (await anext(watch(client, name(1), 1))).event.behaviour == told
    assert monitor.registry.get_sample_value("crucible_events_total", {"kind": "behaviour"}) == 1


async def test_another_tenants_evaluation_is_not_found(gateway, dial, log):
    log.output(name(1))
    with pytest.raises(NotFoundError):
        await anext(watch(dial(gateway, OTHER_KEY), name(1)))
