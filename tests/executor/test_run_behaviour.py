"""What a run tries, in the stream of its events."""

import asyncio

from crucible.evaluation.v1 import behaviour_update_pb2 as bu
from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor.behaviour import MAX_UPDATES
from tests.executor.support import collect

TRIED = [["PROBES", "/etc/shadow"], ["CONNECTIONS", "10.0.0.1:80"], ["PROBES", "/proc/1/mem"]]
BLOCKS = {"block": True}


def told(updates):
    return [(action.kind, action.example) for update in updates for action in update.actions]


def attach(executor, run_id, behaviour=0):
    request = ex.AttachRequest(run_id=run_id, behaviour_sequence=behaviour)
    return collect(executor.stub.Attach(request), executor.keys, behaviour=behaviour)


async def until_tried(executor, script, count):
    """Starts a run and leaves its stream after `count` updates; its id, and the updates."""
    request = executor.request(script)
    updates = []
    async for answer in executor.stub.Execute(request):
        updates += [event.behaviour for event in answer.events if event.HasField("behaviour")]
        if len(updates) == count:
            break
    return ex.Ticket.FromString(request.ticket.payload).run_id, updates


async def test_action_is_streamed_while_the_program_runs(executor):
    async with asyncio.timeout(10):
        run_id, updates = await until_tried(executor, {"tried": TRIED, **BLOCKS}, 3)
    assert [update.sequence for update in updates] == [1, 2, 3]
    assert told(updates)[0] == (bu.ACTION_KIND_PROBES, "/etc/shadow")
    assert updates[0].observation == ev.OBSERVATION_OBSERVED
    assert 0 <= updates[0].actions[0].since_start.ToTimedelta().total_seconds() < 10
    executor.engine.release.set()
    await attach(executor, run_id)


async def test_attach_goes_on_after_the_update_that_the_caller_has(executor):
    run_id, _ = await until_tried(executor, {"tried": TRIED, **BLOCKS}, 3)
    executor.engine.release.set()
    for have in range(4):
        assert len((await attach(executor, run_id, have)).updates) == 3 - have
    assert (await attach(executor, run_id, 99)).updates == []


async def test_program_that_tries_nothing_adds_no_event(executor):
    answers = [answer async for answer in executor.stub.Execute(executor.request({"out": "x"}))]
    assert [event.WhichOneof("kind") for answer in answers for event in answer.events] == [
        "started",
        "output",
        "finished",
    ]


async def test_engine_without_a_trace_says_so_when_the_program_starts(executor):
    executor.engine.traced = False
    async with asyncio.timeout(10):
        run_id, [update] = await until_tried(executor, BLOCKS, 1)
    assert update.observation == ev.OBSERVATION_NOT_OBSERVED
    assert update.reason == "the engine scripted has no trace"
    executor.engine.release.set()
    ended = await attach(executor, run_id)
    assert ended.record.behaviour.reason == update.reason


async def test_engine_that_tells_without_end_is_bounded(executor):
    ended = await executor.execute({"tried": [["PROBES", f"/proc/{n}"] for n in range(2 * MAX_UPDATES)]})
    assert len(ended.updates) == MAX_UPDATES
