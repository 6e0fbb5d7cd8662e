"""Behaviour updates in the event log: nothing twice, nothing missing, in bounds."""

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import inspect, text

from crucible.evaluation.v1 import behaviour_update_pb2 as bu
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_storage import behaviour_updates as bounds
from crucible_storage import migrate
from crucible_storage.migrations import is_current
from tests.storage import world as w
from tests.storage.world import finished, output, report, started

pytestmark = pytest.mark.slow


def action(example="/etc/shadow", kind=bu.ACTION_KIND_PROBES, count=1, **more):
    made = bu.SeenAction(kind=kind, example=example, count=count, **more)
    if not more:
        made.since_start.FromMilliseconds(12)
    return made


def update(sequence, *actions, observation=pb.OBSERVATION_OBSERVED, **more):
    told = bu.BehaviourUpdate(sequence=sequence, observation=observation, actions=actions or [action()], **more)
    return ex.RunEvent(behaviour=told)


async def stored(world):
    return [event.behaviour for event in await world.events() if event.WhichOneof("kind") == "behaviour"]


async def test_updates_are_events_at_their_positions(world):
    assignment = await world.running()
    await world.report(report(assignment, update(1), output(b"x"), update(2, action("/proc/1/mem", count=2))))
    kinds = [(event.position, event.WhichOneof("kind")) for event in await world.events()]
    assert kinds[-3:] == [(4, "behaviour"), (5, "output"), (6, "behaviour")]
    [first, second] = await stored(world)
    assert first == update(1).behaviour
    assert [one.example for one in second.actions] == ["/proc/1/mem"]
    assert [event.attempt for event in await world.events()][-1] == 1


async def test_update_that_is_stored_already_is_ignored(world):
    assignment = await world.running()
    for events in ((update(1),), (update(1), update(2)), (update(2),), (update(1), update(2), update(3))):
        assert await world.report(report(assignment, *events)) == []
    assert [one.sequence for one in await stored(world)] == [1, 2, 3]


async def test_gap_is_refused_and_stores_nothing(world):
    assignment = await world.running()
    [rejected] = await world.report(report(assignment, update(1), update(3)))
    assert (rejected.reason, "1 are stored" in rejected.message) == ("INVALID_FIELD", True)
    assert await stored(world) == []


async def test_lease_says_how_many_are_stored_and_the_next_attempt_begins_anew(world):
    assignment = await world.running()
    await world.report(report(assignment, update(1), update(2)))
    answer = await world.register()
    assert [held.behaviour_updates for held in answer] == [2]
    failed = ex.RunTermination(sandbox_failed=ex.SandboxFailed(reason="broken"))
    await world.report(report(assignment, finished(assignment, failed)))
    world.clock.advance(w.timedelta(seconds=5))
    second = await world.lease_one()
    assert await world.report(report(second, started(), update(1))) == []
    assert [event.attempt for event in await world.events() if event.HasField("behaviour")] == [1, 1, 2]


async def test_update_makes_a_starting_run_running(world):
    await world.create()
    await world.register()
    assignment = await world.lease_one()
    assert await world.report(report(assignment, update(1))) == []
    assert (await world.get(assignment)).state == pb.EVALUATION_STATE_RUNNING


@pytest.mark.parametrize(
    "event",
    [
        update(0), update(-1), update(bounds.MAX_UPDATES + 1),
        update(1, observation=pb.OBSERVATION_UNSPECIFIED), update(1, observation=99),
        update(1, reason="x" * (bounds.MAX_REASON + 1)),
        update(1, *[action()] * (bounds.MAX_ACTIONS + 1)),
        update(1, exhausted=[bu.ACTION_KIND_PROBES] * 8), update(1, exhausted=[0]), update(1, exhausted=[99]),
        update(1, action("a" * (bounds.MAX_EXAMPLE + 1))), update(1, action("\x1b[2J")), update(1, action("ü")),
        update(1, action(kind=bu.ACTION_KIND_UNSPECIFIED)), update(1, action(kind=99)),
        update(1, action(count=0)), update(1, action(count=-1)),
        update(1, action(since_start=Duration(seconds=-1))),
        update(1, action(since_start=Duration(seconds=1 << 60))),
        update(1, action(since_start=Duration(nanos=1_000_000_000))),
    ],
)  # fmt: skip
async def test_update_out_of_bounds_is_refused_by_itself(world, event):
    assignment = await world.running()
    [rejected] = await world.report(report(assignment, event))
    assert rejected.reason == "INVALID_FIELD"
    assert await stored(world) == []
    assert await world.report(report(assignment, update(1))) == []


def test_a_database_of_the_version_before_is_brought_up(tmp_path, databases):
    databases.url(tmp_path / "state", empty=True)
    backend = databases.backend(tmp_path / "state")
    with backend.writer.connect() as connection, connection.begin():
        migrate.command.upgrade(migrate.config(connection), "0002")
        assert not is_current(connection)
        values = dict.fromkeys((column["name"] for column in inspect(connection).get_columns("evaluation")), "'1'")
        row = f"INSERT INTO evaluation ({', '.join(values)}) VALUES ({', '.join(values.values())})"
        connection.execute(text(row))
        connection.execute(text("INSERT INTO event VALUES ('7', 't', '1', '1', '1', '1')"))
        migrate.upgrade(connection)
        assert is_current(connection)
        assert connection.execute(text("SELECT behaviour_updates FROM evaluation")).scalar_one() == 0
        assert connection.execute(text("SELECT position FROM log_head")).scalar_one() == 7
    backend.dispose()
