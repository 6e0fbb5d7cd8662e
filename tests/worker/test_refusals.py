"""What an executor refuses: for want of room it waits; for any other reason it comes to an end that tells it."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_executor import breaker
from crucible_executor.engines.guarded import GuardedEngine
from crucible_executor.metrics import EngineMetrics
from crucible_rpc import errors, signing
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ServerTls
from crucible_storage.clock import SystemClock
from crucible_storage.integrity.check import check
from crucible_storage.permissions import PERMISSIONS
from crucible_storage.policy import Policy
from crucible_storage.serving import add_services
from crucible_worker import slots
from crucible_worker.carrier import refusal
from crucible_worker.worker import Worker
from tests.executor.support import running
from tests.executor.test_runs import begin
from tests.executor.test_withdrawn_runs import Holding, open_breaker
from tests.storage import world as w
from tests.worker.support import working
from tests.worker.test_worker import until

pytestmark = pytest.mark.slow

RECORDS = signing.Verifier.of(w.RECORDS.public_pem)


async def test_evaluation_whose_ticket_no_executor_takes_ends_with_that_reason(keys, executor, tmp_path):
    """Storage's own key is not the one that the executor was told: every part is the real one."""
    policy = Policy(backoff=timedelta(milliseconds=20))
    own = keys.folder / "storage"
    tls = ServerTls(own / "tls.crt", own / "tls.key", own / "ca.crt")
    async with w.storage(tmp_path / "storage", policy, SystemClock()) as world:
        server = Server(
            "storage", "127.0.0.1:0", tls, authentication=PeerPermissions(PERMISSIONS), registry=CollectorRegistry()
        )
        add_services(server, world.service)
        await server.start()
        try:
            async with working(keys, server.port, executor.service.port):
                created = await world.create(engine="scripted")

                async def ended():
                    return (await world.get(created)).HasField("end_time")

                await until(ended, seconds=20)
                done = await world.get(created)
        finally:
            await server.drain(timedelta(0))
    assert done.state == pb.EVALUATION_STATE_FAILED
    assert done.attempt == policy.max_attempts
    why = "INVALID_TICKET: the ticket's signature is not storage's"
    assert done.termination.infrastructure_failure.reason == why
    assert [failed.reason for failed in done.failed_attempts] == [why] * (policy.max_attempts - 1)
    assert executor.engine.created == 0


async def test_executor_that_refuses_everything_does_not_use_up_the_attempts_of_the_whole_queue(
    executor, storage, worker, monkeypatch
):
    monkeypatch.setattr(slots, "FIRST_REFUSAL_PAUSE_SECONDS", 30.0)
    storage.ticket_changes = {"executor_id": "another"}
    runs = [await storage.add({}) for _ in range(40)]
    await storage.until(lambda: any(run.over for run in runs))
    await asyncio.sleep(0.5)  # what is looked at is what it does not lease in that time
    assert sum(run.leased for run in runs) <= 8  # twice the slots: those of the call that was under way as well


async def test_executor_without_room_for_output_does_not_get_the_whole_queue_to_refuse(keys, storage, tmp_path):
    async with (
        running(keys, tmp_path / "full", min_free_bytes=1 << 60) as executor,
        working(keys, storage.port, executor.service.port),
    ):
        runs = [await storage.add({}) for _ in range(40)]
        await storage.until(lambda: any(run.over for run in runs))
        await asyncio.sleep(0.5)  # what is looked at is what it does not lease in that time
        refused = [run.refused for run in runs if run.refused is not None]
        assert 0 < len(refused) <= 8
        assert not any(one.failed_attempt or one.permanent for one in refused)
        assert all(one.retry_after.seconds == 5 for one in refused)


async def test_work_flows_at_once_after_the_executor_takes_it_again(executor, storage, worker):
    storage.ticket_changes = {"executor_id": "another"}
    refused = await storage.add({})
    await storage.until(lambda: refused.over)
    assert refused.refused.failed_attempt
    storage.ticket_changes = {}
    taken = [await storage.add({}) for _ in range(20)]
    await storage.until(lambda: all(run.record is not None for run in taken), seconds=10)


async def test_refusal_for_want_of_room_is_no_attempt(keys, executor, storage):
    for _ in range(4):
        await begin(executor)
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        await executor.execute({})
    message = refusal(caught.value)
    assert "NO_FREE_SLOT" in message.reason
    assert message.retry_after.ToTimedelta() > timedelta(0)
    assert not message.failed_attempt
    assert not message.permanent
    executor.engine.release.set()


def test_refusal_by_an_engine_that_fails_just_now_is_no_attempt():
    message = refusal(errors.FailedPreconditionError("ENGINE_NOT_AVAILABLE", "runsc is gone"))
    assert message.reason == "ENGINE_NOT_AVAILABLE: runsc is gone"
    assert message.retry_after.ToTimedelta() > timedelta(0)
    assert not message.failed_attempt
    assert not message.permanent


@dataclass
class Stack:
    """The real storage, worker and executor, over an engine inside its breaker."""

    inner: Holding
    guarded: GuardedEngine
    world: w.World
    worker: Worker

    async def told_that_breaker_is_open(self):
        (listed,) = await self.world.service.executors.list()
        return listed.executor.engines[0].breaker_open

    async def mend(self):
        self.inner.creation_error = self.inner.trial_error = None
        await until(lambda: settled(self.guarded.failing == ""))
        self.worker.outdated()  # it is asked at the latest with the next renewal of the leases

    async def ended(self, created):
        async def all_ended():
            return all([(await self.world.get(one)).HasField("end_time") for one in created])

        await until(all_ended, seconds=20)
        return [await self.world.get(one) for one in created]


class Skewed(SystemClock):
    """The machine's clocks, of which the one that can be set differs from everybody else's."""

    def __init__(self, by):
        self._by = by // timedelta(microseconds=1)

    def now(self):
        return super().now() + self._by


@pytest.fixture
def clock():
    """Storage's."""
    return SystemClock()


@pytest.fixture
async def stack(keys, tmp_path, monkeypatch, clock):
    """Nobody looks at the executor on its own account."""
    monkeypatch.setattr(breaker, "_LONGEST_PAUSE_S", 0.1)
    inner = Holding(tmp_path / "starts")
    guarded = GuardedEngine(inner, EngineMetrics(CollectorRegistry()))
    policy = Policy(lease=timedelta(minutes=5), orphan_grace=timedelta(minutes=6), max_attempts=1)
    own = keys.folder / "storage"
    tls = ServerTls(own / "tls.crt", own / "tls.key", own / "ca.crt")
    tickets, records = tmp_path / "tickets.pub", tmp_path / "records.key"
    tickets.write_bytes(w.TICKETS.public_pem)
    records.write_bytes(w.RECORDS.private_pem)
    async with (
        running(keys, tmp_path / "state", guarded, tickets_pub=(str(tickets),), records_key=records) as executor,
        w.storage(tmp_path / "storage", policy, clock) as world,
    ):
        server = Server(
            "storage", "127.0.0.1:0", tls, authentication=PeerPermissions(PERMISSIONS), registry=CollectorRegistry()
        )
        add_services(server, world.service)
        await server.start()
        try:
            async with working(keys, server.port, executor.service.port) as working_one:
                await working_one.worker.connected()
                yield Stack(inner, guarded, world, working_one.worker)
        finally:
            await server.drain(timedelta(0))


async def test_work_on_its_way_to_an_engine_whose_breaker_opened_waits_and_then_runs_as_its_first_attempt(stack):
    await open_breaker(stack.guarded, stack.inner)
    created = [await stack.world.create(code=b"{}", engine="scripted") for _ in range(6)]
    await until(stack.told_that_breaker_is_open)
    waiting = [await stack.world.get(one) for one in created]
    await stack.mend()
    done = await stack.ended(created)
    assert {one.state for one in waiting} <= {pb.EVALUATION_STATE_QUEUED, pb.EVALUATION_STATE_STARTING}
    assert {one.state for one in done} == {pb.EVALUATION_STATE_SUCCEEDED}
    assert [(one.attempt, len(one.failed_attempts)) for one in done] == [(1, 0)] * len(done)


async def test_run_that_was_accepted_when_the_breaker_opened_costs_no_attempt_and_its_history_holds(stack):
    """One attempt is all that there is here, and it is still there when the engine works again."""
    stack.inner.hold_next = True
    created = await stack.world.create(code=b'{"name": "once"}', engine="scripted")
    await asyncio.wait_for(stack.inner.held.wait(), 5)
    await open_breaker(stack.guarded, stack.inner)
    stack.inner.gate.set()
    await until(stack.told_that_breaker_is_open)

    async def queued():
        return (await stack.world.get(created)).state == pb.EVALUATION_STATE_QUEUED

    await until(queued)
    waiting = await stack.world.get(created)
    assert (waiting.attempt, waiting.HasField("start_time"), stack.inner.started()) == (0, False, [])
    await stack.mend()
    [done] = await stack.ended([created])
    assert (done.state, done.attempt) == (pb.EVALUATION_STATE_SUCCEEDED, 1)
    assert (len(done.failed_attempts), stack.inner.started()) == (0, ["once"])
    told = [event.state_changed.state for event in await stack.world.events() if event.HasField("state_changed")]
    assert told == [
        pb.EVALUATION_STATE_QUEUED, pb.EVALUATION_STATE_STARTING, pb.EVALUATION_STATE_QUEUED,
        pb.EVALUATION_STATE_STARTING, pb.EVALUATION_STATE_RUNNING, pb.EVALUATION_STATE_SUCCEEDED,
    ]  # fmt: skip
    verdict = await stack.world.service.database.read(lambda connection: check(connection, RECORDS))
    assert (verdict.findings.shown, verdict.progress.evaluations) == ([], 1)


@pytest.mark.parametrize("clock", [Skewed(timedelta(hours=1)), Skewed(timedelta(hours=-1))], ids=["ahead", "behind"])
async def test_clocks_that_differ_by_an_hour_refuse_no_work(stack):
    """More than there are slots, so that work comes in both ways: by a call that waits for it, and with a report."""
    created = [await stack.world.create(code=b"{}", engine="scripted") for _ in range(12)]
    done = await stack.ended(created)
    assert {one.state for one in done} == {pb.EVALUATION_STATE_SUCCEEDED}
    assert [(one.attempt, len(one.failed_attempts)) for one in done] == [(1, 0)] * len(done)


async def test_worker_that_comes_after_a_run_was_withdrawn_still_tells_storage_that_it_was_no_attempt(
    keys, storage, tmp_path, monkeypatch
):
    monkeypatch.setattr(breaker, "_LONGEST_PAUSE_S", 0.1)
    inner = Holding(tmp_path / "starts")
    guarded = GuardedEngine(inner, EngineMetrics(CollectorRegistry()))
    async with running(keys, tmp_path / "state", guarded) as executor:
        inner.hold_next = True
        async with working(keys, storage.port, executor.service.port) as first:
            run = await storage.add({})
            await asyncio.wait_for(inner.held.wait(), 5)
            await first.crash()
        await open_breaker(guarded, inner)
        inner.gate.set()
        await until(lambda: settled(run.run_id not in executor.service.runs.states()))
        async with working(keys, storage.port, executor.service.port):
            await storage.until(lambda: run.over)
    assert run.refused.reason.startswith("ENGINE_NOT_AVAILABLE")
    assert run.refused.retry_after.ToTimedelta() > timedelta(0)
    assert not run.refused.failed_attempt
    assert not run.refused.permanent
    assert inner.started() == []


async def settled(value):
    return value


@pytest.mark.parametrize(
    "error",
    [
        errors.PermissionDeniedError("INVALID_TICKET", "the ticket's signature is not storage's"),
        errors.PermissionDeniedError("PEER_NOT_PERMITTED", "this process may not call that"),
        errors.UnauthenticatedError("PEER_UNAUTHENTICATED", "no certificate of this installation"),
        errors.FailedPreconditionError("RUNTIME_NOT_AVAILABLE", "its image is not there"),
        errors.UnimplementedError("UNIMPLEMENTED", "no such RPC"),
        errors.ResourceExhaustedError("RESOURCE_EXHAUSTED", "a quota of gRPC itself"),
    ],
    ids=lambda error: error.reason,
)
def test_refusal_for_any_other_reason_is_an_attempt_that_failed(error):
    message = refusal(error)
    assert message.failed_attempt
    assert not message.permanent
    assert message.reason == str(error)


@pytest.mark.parametrize(
    "error",
    [
        errors.UnavailableError("PEER_UNAVAILABLE", "gone"),
        errors.DeadlineExceededError("DEADLINE_EXCEEDED", "late"),
        errors.InternalError("INTERNAL", "a fault"),
        errors.CallCancelledError("CANCELLED", "cancelled"),
    ],
    ids=lambda error: error.reason,
)
def test_failed_call_that_may_have_been_accepted_is_no_refusal(error):
    assert refusal(error) is None
