"""Inspections: given as work once, kept as their executor signed them, and never left without an end."""

import asyncio
from contextlib import aclosing
from datetime import timedelta

import pytest
from sqlalchemy import text

from crucible.evaluation.v1.platform_pb2 import Engine
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible.storage.v1 import inspection_service_pb2 as api
from crucible_rpc import signing
from crucible_rpc.errors import FailedPreconditionError, ResourceExhaustedError
from crucible_storage import inspections as domain
from crucible_storage.inspections import Wanted
from tests.storage import world as w
from tests.storage.world import POLICY, executor, storage

pytestmark = pytest.mark.slow

SELF_TEST, VERIFY = pb.INSPECTION_KIND_SELF_TEST, pb.INSPECTION_KIND_VERIFY_ISOLATION
ROWS = "SELECT state, reason FROM inspection ORDER BY seq"


@pytest.fixture
async def world(tmp_path):
    async with storage(tmp_path / "state") as made:
        yield made


class Asked:
    """Somebody who follows an inspection, as the gateway does."""

    def __init__(self, world, kind=SELF_TEST, engine="gvisor", attempts=(), tenant="t"):
        self.answers = []
        self.ended = asyncio.Event()
        wanted = Wanted(tenant, "key-1", kind, engine, tuple(attempts))
        self.task = asyncio.create_task(self._follow(world.service.inspections.run(wanted)))

    async def _follow(self, answers):
        async with aclosing(answers):
            async for one in answers:
                self.answers.append(one)
        self.ended.set()

    async def end(self):
        await asyncio.wait_for(self.task, 10)
        return self.answers[-1]

    async def leave(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def leased(world, executor_id="ex-1", boot_id="boot-1"):
    async with asyncio.timeout(10):
        while True:
            given = await world.service.inspections.lease(executor_id, w.told(boot_id), 5.0)
            if given:
                return given


async def lease_one(world, **which):
    [assignment] = await leased(world, **which)
    return pb.InspectionTicket.FromString(assignment.ticket.payload)


def event(ticket, sequence, *, key=w.RECORDS.private_pem, context=domain.CONTEXT, **fields):
    made = pb.InspectionEvent(
        inspection_id=ticket.inspection_id, executor_id=ticket.executor_id, boot_id=ticket.boot_id, sequence=sequence
    )
    for name, value in fields.items():
        if isinstance(value, str):
            setattr(made, name, value)
        else:
            getattr(made, name).CopyFrom(value)
    return w.signed(made, key, context)


def check(name="fsync"):
    return pb.CheckResult(component="journal", name=name, status=pb.CHECK_STATUS_PASSED, evidence="1 ms")


SUMMARY = pb.SelfTestSummary(executor="ex-1", passed=1)


async def report(world, ticket, *events, outcome=None, executor_id="ex-1"):
    return await world.service.inspections.report(executor_id, ticket.inspection_id, events, outcome)


async def rows(world):
    return await world.service.database.read(lambda connection: [tuple(row) for row in connection.execute(text(ROWS))])


async def test_what_the_executor_found_reaches_the_caller_in_order_and_is_kept(world):
    await world.register()
    asked = Asked(world, tenant="acme")
    ticket = await lease_one(world)
    assert not await report(world, ticket, event(ticket, 1, check=check()))
    # An answer got lost: the worker reports again, and nothing is there twice.
    assert not await report(world, ticket, event(ticket, 1, check=check()), event(ticket, 2, check=check("torn line")))
    assert await report(world, ticket, event(ticket, 3, self_test=SUMMARY))
    await asked.end()
    assert [one.event.WhichOneof("kind") for one in asked.answers] == ["check", "check", "self_test"]
    assert [one.event.sequence for one in asked.answers] == [1, 2, 3]
    assert await rows(world) == [(domain.DONE, "")]
    assert await report(world, ticket, event(ticket, 4, check=check()))  # over: its worker is told to stop


async def test_a_ticket_is_storages_for_this_start_of_this_executor_and_for_nothing_else(world):
    await world.register()
    asked = Asked(world, VERIFY, attempts=["mount"])
    [assignment] = await leased(world)
    verifier, signed = signing.Verifier.of(w.TICKETS.public_pem), assignment.ticket
    verifier.verify("crucible.inspection.ticket.v1", signed.payload, signed.key_id, signed.signature)
    with pytest.raises(signing.BadSignatureError):
        verifier.verify("crucible.ticket.v1", signed.payload, signed.key_id, signed.signature)
    ticket = pb.InspectionTicket.FromString(signed.payload)
    assert (ticket.executor_id, ticket.boot_id, ticket.engine) == ("ex-1", "boot-1", "gvisor")
    assert (ticket.kind, list(ticket.attempts)) == (VERIFY, ["mount"])
    assert (ticket.since, ticket.waited.ToTimedelta()) == (w.told(), timedelta(0))
    assert await world.service.inspections.lease("ex-1", w.told(), 0.0) == []  # given once
    await asked.leave()


async def test_one_of_a_kind_per_executor_and_another_executor_takes_the_next(world):
    await world.register()
    first = Asked(world, VERIFY)
    ticket = await lease_one(world)
    refused = Asked(world, VERIFY)
    with pytest.raises(ResourceExhaustedError) as busy:
        await refused.end()
    assert busy.value.reason == "INSPECTION_RUNNING"
    assert busy.value.retry_after
    other_kind = Asked(world, SELF_TEST)
    assert (await lease_one(world)).kind == SELF_TEST
    await world.register(executor_id="ex-2", boot_id="boot-2")
    elsewhere = Asked(world, VERIFY)
    assert (await lease_one(world, executor_id="ex-2", boot_id="boot-2")).kind == VERIFY
    await report(world, ticket, event(ticket, 1, verification=pb.VerificationSummary(contained=1)))
    await first.end()
    again = Asked(world, VERIFY)
    assert (await lease_one(world)).inspection_id != ticket.inspection_id
    for one in (other_kind, elsewhere, again):
        await one.leave()


async def test_a_caller_who_leaves_ends_it(world):
    await world.register()
    asked = Asked(world)
    ticket = await lease_one(world)
    assert not await report(world, ticket, event(ticket, 1, check=check()))
    await asked.leave()
    assert await report(world, ticket)
    assert await rows(world) == [(domain.CANCELLED, "its caller left")]
    assert world.service.inspections._heard == {}


async def test_a_caller_who_leaves_before_it_was_given_leaves_no_work(world):
    await world.register()
    asked = Asked(world)
    async with asyncio.timeout(10):
        while not await rows(world):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asked.leave()
    assert await world.service.inspections.lease("ex-1", w.told(), 0.0) == []


async def test_work_whose_worker_left_while_it_was_given_goes_to_the_next_who_asks(world, monkeypatch):
    await world.register()
    asked = Asked(world)
    async with asyncio.timeout(10):
        while not await rows(world):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    database = world.service.database
    write = database.write

    def and_its_worker_leaves(run):
        monkeypatch.setattr(database, "write", write)
        leaving.cancel()
        return write(run)

    monkeypatch.setattr(database, "write", and_its_worker_leaves)
    leaving = asyncio.create_task(world.service.inspections.lease("ex-1", w.told(), 0.0))
    with pytest.raises(asyncio.CancelledError):
        await leaving
    ticket = await lease_one(world)
    assert await report(world, ticket, event(ticket, 1, self_test=SUMMARY))
    assert (await asked.end()).event.self_test == SUMMARY


@pytest.mark.parametrize("given", [False, True])
async def test_a_silent_worker_loses_it_and_nothing_is_said_that_was_not_measured(world, given):
    await world.register()
    asked = Asked(world)
    if given:
        ticket = await lease_one(world)
        await report(world, ticket, event(ticket, 1, check=check()))
        world.clock.advance(POLICY.lease - timedelta(seconds=1))
        assert not await report(world, ticket)
    else:
        async with asyncio.timeout(10):
            while not await rows(world):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    world.clock.advance(POLICY.lease + timedelta(seconds=1))
    last = await asked.end()
    said = "its executor's worker was not heard of" if given else "its executor's worker did not take it"
    assert last.lost.reason == f"{said} for 10 s"
    assert [one.event.WhichOneof("kind") for one in asked.answers[:-1]] == (["check"] if given else [])
    if given:
        assert await report(world, ticket, event(ticket, 2, self_test=SUMMARY))
        assert await rows(world) == [(domain.LOST, last.lost.reason)]


async def test_a_worker_that_says_it_is_lost_or_refused_ends_it_at_once(world):
    await world.register()
    for outcome, kind in (
        (api.InspectionLost(reason="its executor was lost"), "lost"),
        (api.InspectionRefused(reason="CANNOT_VERIFY", message="no"), "refused"),
    ):
        asked = Asked(world)
        ticket = await lease_one(world)
        assert await report(world, ticket, outcome=outcome)
        assert getattr(await asked.end(), kind) == outcome


async def test_an_executor_that_could_not_end_it_is_told_as_a_loss(world):
    await world.register()
    asked = Asked(world)
    ticket = await lease_one(world)
    assert await report(world, ticket, event(ticket, 1, failed=pb.InspectionFailed(reason="it took too long")))
    assert (await asked.end()).lost.reason == "its executor could not bring it to its end: it took too long"


LIES = {
    "made up": lambda ticket: event(ticket, 1, key=signing.generate().private_pem, self_test=SUMMARY),
    "a run's record": lambda ticket: event(ticket, 1, context="crucible.record.v1", self_test=SUMMARY),
    "of another inspection": lambda ticket: event(ticket, 1, inspection_id="0" * 36, self_test=SUMMARY),
    "of another start": lambda ticket: event(ticket, 1, boot_id="boot-0", self_test=SUMMARY),
    "of another executor": lambda ticket: event(ticket, 1, executor_id="ex-2", self_test=SUMMARY),
    "with a gap": lambda ticket: event(ticket, 2, self_test=SUMMARY),
    "without end": lambda ticket: event(ticket, domain.MAX_EVENTS + 1, check=check()),
    "of another kind": lambda ticket: event(ticket, 1, verification=pb.VerificationSummary(contained=94)),
    "too large": lambda ticket: event(ticket, 1, check=check("x" * domain.MAX_EVENT_BYTES)),
    "nothing": lambda ticket: event(ticket, 1),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_the_executor_did_not_sign_for_it_is_never_kept(world, lie):
    await world.register()
    asked = Asked(world)
    ticket = await lease_one(world)
    assert await report(world, ticket, LIES[lie](ticket))
    last = await asked.end()
    assert "did not sign" in last.lost.reason
    assert asked.answers == [last]


async def test_another_executors_worker_reports_nothing(world):
    await world.register()
    await world.register(executor_id="ex-2", boot_id="boot-2")
    asked = Asked(world)
    ticket = await lease_one(world)
    assert await report(world, ticket, event(ticket, 1, self_test=SUMMARY), executor_id="ex-2")
    assert await rows(world) == [(domain.RUNNING, "")]
    with pytest.raises(FailedPreconditionError):
        await world.service.inspections.lease("ex-1", w.told("boot-0"), 0.0)
    await asked.leave()


async def test_an_engine_that_nobody_has_is_refused_with_the_reason(world):
    with pytest.raises(FailedPreconditionError, match="no executor's worker is heard of"):
        await Asked(world).end()
    one = executor(engines=("gvisor",))
    one.engines.append(Engine(name="docker", unavailable_reason="dockerd does not answer"))
    await world.service.leases.register(one)
    for kind in (SELF_TEST, VERIFY):
        with pytest.raises(FailedPreconditionError, match="dockerd does not answer") as refused:
            await Asked(world, kind, "docker").end()
        assert refused.value.reason == "ENGINE_NOT_AVAILABLE"
        with pytest.raises(FailedPreconditionError, match="no live executor has it"):
            await Asked(world, kind, "wasm").end()
    world.clock.advance(POLICY.lease + timedelta(seconds=1))
    with pytest.raises(FailedPreconditionError, match="no executor's worker is heard of"):
        await Asked(world).end()


async def test_an_executor_that_takes_no_work_can_still_say_what_is_wrong_with_it(world):
    one = executor(engines=())
    one.engines.append(Engine(name="gvisor", unavailable_reason="its self-test failed"))
    one.not_serving_reason = "its self-test failed"
    await world.service.leases.register(one)
    asked = Asked(world)
    assert (await lease_one(world)).kind == SELF_TEST
    await asked.leave()
    with pytest.raises(FailedPreconditionError, match="its self-test failed"):
        await Asked(world, VERIFY).end()


async def test_a_storage_that_starts_anew_ends_what_belonged_to_the_calls_before(tmp_path):
    async with storage(tmp_path / "state") as before:
        await before.register()
        asked = Asked(before)
        ticket = await lease_one(before)
        asked.task.cancel()
        # As a crash would: what the ending call stores does not get there.
        before.service.inspections._abandoned = lambda _: asyncio.sleep(0)
        await asyncio.gather(asked.task, return_exceptions=True)
        assert await rows(before) == [(domain.RUNNING, "")]
    async with storage(tmp_path / "state") as after:
        assert await rows(after) == [(domain.LOST, "storage was started anew")]
        assert await report(after, ticket)


async def test_only_the_latest_are_kept(world, monkeypatch):
    monkeypatch.setattr(domain, "KEPT", 3)
    await world.register()
    for _ in range(6):
        asked = Asked(world)
        ticket = await lease_one(world)
        await report(world, ticket, event(ticket, 1, self_test=SUMMARY))
        await asked.end()
    assert len(await rows(world)) == 3
    count = "SELECT count(*) FROM inspection_event"
    assert await world.service.database.read(lambda c: c.execute(text(count)).scalar_one()) == 3


async def test_a_worker_that_waits_is_given_one_at_once_and_let_go_when_storage_stops(world):
    await world.register()
    waiting = asyncio.create_task(world.service.inspections.lease("ex-1", w.told(), 30.0))
    await asyncio.sleep(0)
    asked = Asked(world)
    assert len(await asyncio.wait_for(waiting, 4)) == 1
    waiting = asyncio.create_task(world.service.inspections.lease("ex-1", w.told(), 30.0))
    await asyncio.sleep(0.05)
    world.service.hub.close()
    assert await asyncio.wait_for(waiting, 2) == []
    with pytest.raises(Exception, match="storage is stopping"):
        await asked.end()
