"""Deletion on request and by age: only of what has ended, in full, with a tombstone, and no gap in the log."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.event_pb2 import Event, EventRemoved
from crucible_rpc.errors import FailedPreconditionError, InternalError, NotFoundError
from crucible_storage import faults
from crucible_storage.clock import timestamp
from crucible_storage.deletion import MAX_PER_TRANSACTION, Deletion, Keep
from crucible_storage.lists import Filter
from crucible_storage.retention import HOLD, Retention
from crucible_storage.settings import Settings
from tests.storage.world import STDOUT, exited, finished, output, report, started, storage

DAY = timedelta(days=1)


async def ended(world, tenant="t", **parts):
    """An evaluation that wrote `out` and ended."""
    name = (await world.create(tenant, **parts)).name
    await world.register()
    assignment = await world.lease_one()
    assert assignment.evaluation == name
    end = finished(assignment, exited(0), stdout=b"out")
    assert await world.report(report(assignment, started(), output(b"out"), end)) == []
    return name


def id_of(name):
    return name.removeprefix("evaluations/")


async def delete(world, name):
    return await world.service.deletion.delete(id_of(name), "key-9", "asked to")


async def rows(world, table):
    query = text(f"SELECT count(*) FROM {table}")
    return await world.service.database.read(lambda connection: connection.execute(query).scalar_one())


async def test_what_was_deleted_is_gone_for_every_caller_and_its_digests_stay(world):
    name = await ended(world, labels={"a": "b"}, request_id="r")
    other = await ended(world)
    deleted = await delete(world, name)
    assert deleted.tenant == "t"
    assert deleted.time == world.clock.now()
    assert deleted.left.state == pb.EVALUATION_STATE_SUCCEEDED
    assert (deleted.left.by, deleted.left.reason) == ("key-9", "asked to")
    assert deleted.left.record_sha256
    assert deleted.left.stdout_sha256 == (await world.get(other)).stdout.sha256
    evaluations = world.service.evaluations
    for asked in (
        world.get(name),
        evaluations.cancel("t", id_of(name), "key", ""),
        evaluations.wait("t", id_of(name), 0),
        anext(evaluations.read_output("t", id_of(name), STDOUT, 0, 0)),
        anext(world.service.events.read("t", id_of(name), 0)),
    ):
        with pytest.raises(NotFoundError):
            await asked
    page, _ = await world.service.lists.page(Filter("t"), 10, "")
    assert [one.name for one in page] == [other]
    assert await evaluations.counts("t") == {pb.EVALUATION_STATE_SUCCEEDED: 1, 1: 0, 2: 0}
    assert [await rows(world, table) for table in ("program", "result", "output", "label")] == [1, 1, 1, 0]


async def test_a_second_deletion_answers_as_the_first_did(world):
    name = await ended(world)
    first = await delete(world, name)
    world.clock.advance(DAY)
    assert await delete(world, name) == first
    assert len([one for one in await world.events() if one.WhichOneof("kind") == "deleted"]) == 1


@pytest.mark.parametrize("state", ["queued", "starting", "running"])
async def test_what_has_not_ended_is_not_deleted(world, state):
    name = (await world.create()).name
    if state != "queued":
        await world.register()
        assignment = await world.lease_one()
        if state == "running":
            await world.report(report(assignment, started()))
    before = await world.get(name)
    with pytest.raises(FailedPreconditionError) as refused:
        await delete(world, name)
    assert refused.value.reason == "EVALUATION_NOT_TERMINAL"
    assert await world.get(name) == before


async def test_what_never_was_is_not_found(world):
    with pytest.raises(NotFoundError):
        await delete(world, "evaluations/00000000-0000-0000-0000-000000000000")


async def test_the_log_has_no_gap_and_tells_of_the_deletion_live(world):
    name = await ended(world)
    told = [event.position for event in await world.events()]
    tail = world.service.events.tail(-1)
    await anext(tail)
    await delete(world, name)
    [event] = (await asyncio.wait_for(anext(tail), 10)).events
    await tail.aclose()
    assert event.deleted.by == "key-9"
    assert event.evaluation == name
    assert event.position == told[-1] + 1
    events = await world.events()
    assert [one.position for one in events] == [*told, event.position]
    assert all(one.HasField("removed") and one.evaluation == name for one in events[:-1])


async def test_a_read_that_is_under_way_does_not_end_as_if_all_was_read(world):
    name = await ended(world)
    parts = world.service.evaluations.read_output("t", id_of(name), STDOUT, 0, 0)
    assert await anext(parts) == (0, b"out")
    await delete(world, name)
    with pytest.raises(NotFoundError):
        await anext(parts)


async def test_its_request_id_makes_a_new_one(world):
    name = await ended(world, request_id="r")
    await delete(world, name)
    assert (await world.create(request_id="r")).name != name


async def test_an_end_and_its_deletion_in_one_commit(world):
    """Both wait for the writer together: the events of the end are not in the table yet when it is deleted first."""
    await world.register()
    name = (await world.create()).name
    assignment = await world.lease_one()
    end = world.report(report(assignment, finished(assignment, exited(0))))
    refused, deleted = await asyncio.gather(end, delete(world, name))
    assert refused == []
    assert deleted.left.record_sha256


def aged(world, keep):
    return Retention(Deletion(world.service.database, world.clock), world.service.samples, keep, world.clock)


async def test_what_is_older_than_it_is_kept_goes_by_itself_and_nothing_else(world):
    keep = Keep(7 * DAY, {"short": DAY, "always": None})
    old = {tenant: await ended(world, tenant) for tenant in ("t", "short", "always")}
    retention = aged(world, keep)
    assert await retention.look() == 0
    world.clock.advance(DAY + timedelta(seconds=1))
    young = await ended(world, "short")
    queued = (await world.create("short")).name
    assert await retention.look() == 1
    with pytest.raises(NotFoundError):
        await world.get(old["short"], "short")
    await world.get(young, "short")
    world.clock.advance(6 * DAY)
    assert await retention.look() == 2
    with pytest.raises(NotFoundError):
        await world.get(old["t"])
    await world.get(old["always"], "always")
    assert (await world.get(queued, "short")).state == pb.EVALUATION_STATE_QUEUED
    [by_age, *_] = [one.deleted for one in await world.events() if one.HasField("deleted")]
    assert by_age.by == "retention"


async def test_many_go_in_several_transactions(world):
    for _ in range(45):
        await world.cancel(await world.create())
    world.clock.advance(2 * DAY)
    deletion = Deletion(world.service.database, world.clock)
    assert [await deletion.delete_aged(Keep(DAY)) for _ in range(4)] == [20, 20, 5, 0]
    assert await rows(world, "program") == 0


async def change(world, statement, **values):
    def run(transaction):
        transaction.execute(text(statement), values)

    await world.service.database.write(run)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE output SET data = :nothing WHERE evaluation_seq = 1",
        "UPDATE result SET result = :broken WHERE evaluation_seq = 1",
        "UPDATE event SET body = :broken WHERE evaluation_seq = 1",
    ],
    ids=["output", "result", "events"],
)
async def test_one_that_is_damaged_holds_up_no_other_and_is_tried_at_the_next_look(world, caplog, damage):
    broken = await ended(world)
    values = {key: value for key, value in (("nothing", b""), ("broken", b"\xff")) if f":{key}" in damage}
    await change(world, damage, **values)
    others = [await ended(world) for _ in range(2)]
    retention = aged(world, Keep(DAY))
    world.clock.advance(2 * DAY)
    for deleted in (2, 0):
        caplog.clear()
        assert await retention.look() == deleted
        [said] = [one for one in caplog.records if "could not be deleted" in one.message]
        assert "crucible storage check" in said.message
        assert said.exc_info is None
    for other in others:
        with pytest.raises(NotFoundError):
            await world.get(other)
    assert await rows(world, "program") == 1
    state = "SELECT state FROM evaluation WHERE id = :id"
    stored = await world.service.database.read(
        lambda connection: connection.execute(text(state), {"id": id_of(broken)}).scalar_one()
    )
    assert stored == pb.EVALUATION_STATE_SUCCEEDED


async def test_many_that_are_not_to_be_deleted_hide_none_behind_them(world):
    for _ in range(MAX_PER_TRANSACTION + 3):
        await world.cancel(await world.create())
    # As if their last events were not there yet: what they have does not tell of their ends.
    await change(world, "UPDATE event SET body = :created", created=Event(removed=EventRemoved()).SerializeToString())
    last = await world.create()
    await world.cancel(last)
    world.clock.advance(2 * DAY)
    deletion = Deletion(world.service.database, world.clock)
    passed_over = set()
    assert [await deletion.delete_aged(Keep(DAY), passed_over) for _ in range(2)] == [1, 0]
    assert len(passed_over) == MAX_PER_TRANSACTION + 3
    with pytest.raises(NotFoundError):
        await world.get(last.name)


async def test_what_ends_the_transaction_is_not_taken_for_damage(world, monkeypatch, caplog):
    await ended(world)
    world.clock.advance(2 * DAY)

    def lost(*_):
        raise faults.TransactionLostError("an operation could not be undone")

    monkeypatch.setattr("crucible_storage.deletion.references.delete_all", lost)
    with pytest.raises(InternalError):
        await Deletion(world.service.database, world.clock).delete_aged(Keep(DAY))
    assert not [one for one in caplog.records if "could not be deleted" in one.message]


async def test_a_clock_that_is_set_deletes_nothing_for_an_hour(world):
    await ended(world)
    retention = aged(world, Keep(DAY))
    world.clock.wall += 365 * 86_400_000_000
    assert await retention.look() == 0
    world.clock.advance(timedelta(seconds=HOLD - 1))
    assert await retention.look() == 0
    world.clock.advance(timedelta(seconds=2))
    assert await retention.look() == 1


async def test_without_a_setting_everything_is_kept(world):
    await ended(world)
    world.clock.advance(10_000 * DAY)
    assert await aged(world, Keep()).look() == 0


async def test_deleted_stays_deleted_over_a_restart(tmp_path):
    async with storage(tmp_path / "state") as world:
        name = await ended(world)
        await delete(world, name)
        last = world.service.database.last_position
    async with storage(tmp_path / "state") as world:
        assert world.service.database.last_position == last
        with pytest.raises(NotFoundError):
            await world.get(name)
        assert timestamp((await delete(world, name)).time) == timestamp(world.clock.now())


def settings(**values):
    paths = dict.fromkeys(("state", "tls_cert", "tls_key", "tls_ca", "tickets_key", "heads_key", "public_keys"), "x")
    return Settings(**paths, records_pub=("x",), **values)


def test_settings_say_how_long_what_is_kept():
    keep = settings(keep=30 * DAY, keep_tenants=("a=12h", "b=90d", "c=forever")).retention
    assert [keep.of(tenant) for tenant in ("a", "b", "c", "d")] == [DAY / 2, 90 * DAY, None, 30 * DAY]
    assert not keep.for_ever
    assert settings().retention.for_ever


@pytest.mark.parametrize(
    "values",
    [
        {"keep": timedelta(seconds=1)},
        {"keep": timedelta(0)},
        {"keep_tenants": ("a",)},
        {"keep_tenants": ("a=",)},
        {"keep_tenants": ("=1d",)},
        {"keep_tenants": ("a=1d", "a=2d")},
        {"keep_tenants": ("a=0d",)},
        {"keep_tenants": ("a=-1d",)},
    ],
)
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match="keep"):
        settings(**values)
