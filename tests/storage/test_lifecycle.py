"""What becomes of an evaluation, through the domain and the real database."""

import asyncio
from datetime import timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc.errors import AbortedError, FailedPreconditionError, NotFoundError
from crucible_rpc.signing import Verifier
from crucible_storage import executors, store
from crucible_storage.sweeper import Sweeper
from tests.storage import world as w
from tests.storage.world import FENCE, exited, finished, killed, output, report, started

pytestmark = pytest.mark.slow

S = pb.EvaluationState
LEASE = w.POLICY.lease
MICROSECOND = timedelta(microseconds=1)


async def test_a_program_that_exits_with_0_succeeds_with_its_output_and_record(world):
    assignment = await world.running(labels={"suite": "a"})
    event = finished(assignment, stdout=b"one\ntwo\n", stderr=b"!")
    assert await world.report(report(assignment, output(b"one\n"), output(b"!", 0, w.STDERR))) == []
    world.clock.advance(timedelta(seconds=2))
    assert await world.report(report(assignment, output(b"two\n", 4), event)) == []
    done = await world.get(assignment)
    assert done.state == S.EVALUATION_STATE_SUCCEEDED
    assert done.termination.exited.code == 0
    assert done.termination.evidence.source == pb.EVIDENCE_SOURCE_SANDBOX_INIT
    assert (done.stdout.preview, done.stdout.bytes_kept, done.stderr.preview) == (b"one\ntwo\n", 8, b"!")
    assert done.provenance.record == event.finished
    assert done.provenance.start_kind == pb.START_KIND_WARM
    assert done.usage.peak_memory_bytes == 1 << 20
    assert done.start_time.ToMicroseconds() == w.START + 1_500
    assert done.end_time.ToMicroseconds() == world.clock.now()
    assert done.spec == w.spec(labels={"suite": "a"})
    assert done.attempt == 1
    assert not done.failed_attempts


@pytest.mark.parametrize(
    "termination",
    [
        exited(1),
        ex.RunTermination(signalled=pb.Signalled(signal=11)),
        ex.RunTermination(limit_exceeded=pb.LimitExceeded(limit=pb.LIMIT_MEMORY)),
    ],
)
async def test_a_program_that_fails_is_failed_and_never_tried_again(world, termination):
    assignment = await world.running()
    await world.report(report(assignment, finished(assignment, termination)))
    done = await world.get(assignment)
    assert done.state == S.EVALUATION_STATE_FAILED
    assert done.termination.WhichOneof("kind") == termination.WhichOneof("kind")
    world.clock.advance(timedelta(hours=1))
    assert await world.lease() == []


async def test_limit_hits_are_told_in_the_log_and_kept(world):
    assignment = await world.running()
    final = w.final_record(assignment, exited(1))
    final.limit_hits.add(limit=pb.LIMIT_PROCESSES)
    final.unobserved_limits.append(pb.LIMIT_OPEN_FILES)
    await world.report(report(assignment, ex.RunEvent(finished=w.signed(final))))
    stored = await world.get(assignment)
    assert [hit.limit for hit in stored.limit_hits] == [pb.LIMIT_PROCESSES]
    assert list(stored.unobserved_limits) == [pb.LIMIT_OPEN_FILES]
    kinds = [event.WhichOneof("kind") for event in await world.events()]
    assert kinds == ["state_changed", "state_changed", "state_changed", "limit_hit", "state_changed"]


async def test_what_the_program_tried_is_kept_as_the_executor_signed_it(world):
    assignment = await world.running()
    final = w.final_record(assignment, exited(0))
    final.behaviour.observation = pb.OBSERVATION_OBSERVED
    final.behaviour.probes.count = 2
    final.behaviour.probes.examples.append("/etc/shadow")
    final.behaviour.programs.SetInParent()
    await world.report(report(assignment, ex.RunEvent(finished=w.signed(final))))
    assert (await world.get(assignment)).behaviour == final.behaviour


async def test_the_ticket_is_for_this_attempt_this_start_and_these_bytes(world):
    await world.create()
    await world.register()
    assignment = await world.lease_one()
    signature = assignment.ticket
    Verifier.of(w.TICKETS.public_pem).verify(
        "crucible.ticket.v1", signature.payload, signature.key_id, signature.signature
    )
    ticket = ex.Ticket.FromString(signature.payload)
    assert (ticket.run_id, ticket.attempt, ticket.lease_epoch) == (assignment.run_id, 1, 1)
    assert (ticket.executor_id, ticket.boot_id) == ("ex-1", "boot-1")
    assert ticket.run_spec_sha256 == w.hashlib.sha256(assignment.run_spec).digest()
    assert ticket.limits == w.spec().limits
    assert (ticket.since, ticket.waited.ToTimedelta()) == (w.told(), timedelta(0))
    assert ex.RunSpec.FromString(assignment.run_spec) == ex.RunSpec(program=w.spec().program, engine="gvisor")


async def test_a_ticket_says_how_long_its_worker_had_waited_by_a_clock_that_nobody_sets(world):
    await world.register()
    leasing = asyncio.create_task(world.lease(wait=30.0))
    await asyncio.sleep(0)  # it has begun to wait
    world.clock.advance(timedelta(seconds=12))
    world.clock.wall -= 3_600_000_000
    await world.create()
    [assignment] = await asyncio.wait_for(leasing, 10)
    ticket = ex.Ticket.FromString(assignment.ticket.payload)
    assert (ticket.since, ticket.waited.ToTimedelta()) == (w.told(), timedelta(seconds=12))


async def test_infrastructure_failures_are_recorded_and_tried_again_until_the_last_attempt(world):
    await world.create()
    await world.register()
    for attempt in (1, 2, 3):
        assignment = await world.lease_one()
        assert assignment.run_id.endswith(f".{attempt}")
        failed = ex.RunTermination(sandbox_failed=ex.SandboxFailed(reason=f"broken {attempt}"))
        await world.report(report(assignment, started(), finished(assignment, failed)))
        assert await world.lease() == []  # the backoff
        world.clock.advance(timedelta(minutes=2))
    done = await world.get(assignment)
    assert done.state == S.EVALUATION_STATE_FAILED
    assert done.termination.infrastructure_failure.reason == "the sandbox failed: broken 3"
    assert [(one.attempt, one.reason) for one in done.failed_attempts] == [
        (1, "the sandbox failed: broken 1"),
        (2, "the sandbox failed: broken 2"),
    ]
    assert await world.lease() == []


@pytest.mark.parametrize("cause", [ex.KILL_CAUSE_PERMIT_EXPIRED, ex.KILL_CAUSE_SHUTDOWN, ex.KILL_CAUSE_REQUESTED])
async def test_a_kill_that_no_caller_asked_for_is_an_infrastructure_failure(world, cause):
    assignment = await world.running()
    await world.report(report(assignment, finished(assignment, killed(cause))))
    again = await world.get(assignment)
    assert again.state == S.EVALUATION_STATE_QUEUED
    assert len(again.failed_attempts) == 1


async def test_cancel_of_a_queued_evaluation_is_immediate(world):
    created = await world.create()
    cancelled = await world.cancel(created)
    assert cancelled.state == S.EVALUATION_STATE_CANCELLED
    assert (cancelled.termination.cancelled.by, cancelled.termination.cancelled.confirmed) == ("key-2", True)
    await world.register()
    assert await world.lease() == []


async def test_cancel_of_a_running_one_is_confirmed_by_the_executor(world):
    assignment = await world.running()
    running = await world.cancel(await world.get(assignment), "not needed")
    assert running.state == S.EVALUATION_STATE_RUNNING
    lost, stops = await world.renew(assignment)
    assert (lost, stops) == ([], [assignment.run_id])
    await world.report(report(assignment, finished(assignment, killed())))
    done = await world.get(assignment)
    assert done.state == S.EVALUATION_STATE_CANCELLED
    assert done.termination.cancelled == pb.Cancelled(
        by="key-2", reason="not needed", confirmed=True, cause=pb.CANCEL_CAUSE_REQUESTED
    )
    assert done.termination.evidence.source == pb.EVIDENCE_SOURCE_EXECUTOR
    assert done.provenance.executor == "ex-1"


async def test_a_program_that_ended_before_its_cancel_arrived_has_its_own_end(world):
    assignment = await world.running()
    await world.cancel(await world.get(assignment))
    await world.report(report(assignment, finished(assignment, exited(0))))
    assert (await world.get(assignment)).state == S.EVALUATION_STATE_SUCCEEDED


async def test_cancel_of_a_terminal_one_changes_nothing(world):
    assignment = await world.running()
    await world.report(report(assignment, finished(assignment)))
    before = await world.get(assignment)
    assert await world.cancel(before) == before
    assert await world.get(assignment) == before


async def test_cancel_of_a_lost_executors_run_is_not_confirmed(world):
    assignment = await world.running()
    await world.cancel(await world.get(assignment))
    world.clock.advance(FENCE)
    assert await world.sweep() == 1
    done = await world.get(assignment)
    assert done.state == S.EVALUATION_STATE_CANCELLED
    assert not done.termination.cancelled.confirmed


async def test_the_next_attempt_is_never_given_out_before_the_fence(world):
    assignment = await world.running()
    world.clock.advance(LEASE)
    assert await world.renew(assignment) == ([], [])
    world.clock.advance(FENCE - MICROSECOND)
    assert await world.sweep() == 0
    assert await world.lease() == []
    world.clock.advance(MICROSECOND)
    assert await world.sweep() == 1
    world.clock.advance(timedelta(seconds=2))  # the backoff
    second = await world.lease_one()
    assert (second.run_id[-2:], second.epoch) == (".2", assignment.epoch + 2)
    assert "lease expired" in (await world.get(assignment)).failed_attempts[0].reason


async def test_an_expired_epoch_is_fenced_off_from_every_write(world):
    assignment = await world.running()
    world.clock.advance(FENCE)
    await world.sweep()
    for late in (output(b"late"), finished(assignment), started()):
        [rejected] = await world.report(report(assignment, late))
        assert rejected.reason == "STALE_LEASE"
    assert await world.renew(assignment) == ([assignment.run_id], [])
    world.clock.advance(timedelta(seconds=2))
    second = await world.lease_one()
    [rejected] = await world.report(report(assignment, finished(assignment)))
    assert rejected.reason == "STALE_LEASE"
    assert await world.report(report(second, started(), finished(second))) == []


async def test_another_executor_cannot_report_or_renew(world):
    assignment = await world.running()
    [rejected] = await world.report(report(assignment, finished(assignment)), executor_id="ex-2")
    assert rejected.reason == "STALE_LEASE"
    assert await world.renew(assignment, executor_id="ex-2") == ([assignment.run_id], [])


async def test_a_run_whose_loss_is_not_confirmed_keeps_everybody_waiting_for_the_fence(world):
    assignment = await world.running()
    lost = work.RunLost(reason="the executor does not answer")
    assert await world.report(report(assignment, lost=lost)) == []
    assert await world.renew(assignment) == ([assignment.run_id], [])  # and nobody can renew it back to life
    world.clock.advance(FENCE - MICROSECOND)
    assert await world.sweep() == 0
    world.clock.advance(MICROSECOND)
    assert await world.sweep() == 1
    [failed] = (await world.get(assignment)).failed_attempts
    assert failed.reason == "the executor does not answer"


async def test_a_run_whose_loss_is_confirmed_is_tried_again_after_the_backoff(world):
    assignment = await world.running()
    lost = work.RunLost(reason="the executor restarted", confirmed_gone=True)
    assert await world.report(report(assignment, lost=lost)) == []
    world.clock.advance(timedelta(seconds=1.25))
    assert (await world.lease_one()).run_id.endswith(".2")


async def test_a_refusal_is_no_attempt_and_raises_the_epoch(world):
    await world.create()
    await world.register()
    first = await world.lease_one()
    refused = work.Refused(reason="no free slot")
    refused.retry_after.FromSeconds(5)
    assert await world.report(report(first, refused=refused)) == []
    again = await world.get(first)
    assert (again.state, again.attempt) == (S.EVALUATION_STATE_QUEUED, 0)
    assert not again.failed_attempts
    world.clock.advance(timedelta(seconds=5) - MICROSECOND)
    assert await world.lease() == []
    world.clock.advance(MICROSECOND)
    second = await world.lease_one()
    assert (second.run_id, second.epoch) == (first.run_id, first.epoch + 1)
    [rejected] = await world.report(report(first, started()))
    assert rejected.reason == "STALE_LEASE"


async def test_a_permanent_refusal_is_the_end(world):
    created = await world.create()
    await world.register()
    refused = work.Refused(reason="no such image", permanent=True)
    await world.report(report(await world.lease_one(), refused=refused))
    done = await world.get(created)
    assert done.termination.infrastructure_failure.reason == "no such image"


async def test_a_refusal_for_another_reason_than_room_is_an_attempt_that_failed_with_it(world):
    created = await world.create()
    await world.register()
    reason = "INVALID_TICKET: the ticket's signature is not storage's"
    refused = work.Refused(reason=reason, failed_attempt=True)
    for attempt in (1, 2, 3):
        assignment = await world.lease_one()
        assert assignment.run_id.endswith(f".{attempt}")
        assert await world.report(report(assignment, refused=refused)) == []
        assert await world.lease() == []  # as after any failed attempt: not before its backoff
        world.clock.advance(timedelta(seconds=10))
    done = await world.get(created)
    assert done.state == S.EVALUATION_STATE_FAILED
    assert done.termination.infrastructure_failure.reason == reason
    assert [failed.reason for failed in done.failed_attempts] == [reason, reason]
    told = [one.attempt_failed.reason for one in await world.events() if one.WhichOneof("kind") == "attempt_failed"]
    assert told == [reason] * 3


async def test_a_refused_attempt_of_a_cancelled_evaluation_is_its_confirmed_end(world):
    created = await world.create()
    await world.register()
    assignment = await world.lease_one()
    await world.cancel(created)
    await world.report(report(assignment, refused=work.Refused(reason="no", failed_attempt=True)))
    done = await world.get(created)
    assert done.state == S.EVALUATION_STATE_CANCELLED
    assert done.termination.cancelled.confirmed


async def test_a_started_run_cannot_be_refused(world):
    assignment = await world.running()
    [rejected] = await world.report(report(assignment, refused=work.Refused(reason="no")))
    assert rejected.reason == "INVALID_FIELD"
    assert (await world.get(assignment)).state == S.EVALUATION_STATE_RUNNING


async def test_an_end_that_is_reported_again_is_accepted_and_changes_nothing(world):
    assignment = await world.running()
    done = report(assignment, output(b"x"), finished(assignment, stdout=b"x"))
    assert await world.report(done) == []
    before = await world.get(assignment), await world.events()
    assert await world.report(done) == []
    assert (await world.get(assignment), await world.events()) == before


async def test_register_tells_all_leases_with_their_offsets_and_fences_off_the_earlier_start(world):
    assignment = await world.running()
    await world.report(report(assignment, output(b"12345"), output(b"1", 0, w.STDERR)))
    [held] = await world.register(boot_id="boot-2")
    assert (held.run_id, held.epoch, held.boot_id) == (assignment.run_id, assignment.epoch, "boot-1")
    assert (held.stdout_bytes, held.stderr_bytes) == (5, 1)
    with pytest.raises(FailedPreconditionError) as caught:
        await world.lease(boot_id="boot-1")
    assert caught.value.reason == "NOT_REGISTERED"
    # the new start tells how the earlier one's run ended
    lost = ex.RunTermination(lost=ex.Lost(detail="removed at start"))
    final = w.final_record(assignment, lost, boot_id="boot-2")
    assert await world.report(report(assignment, ex.RunEvent(finished=w.signed(final)))) == []


async def test_an_executor_that_never_registered_gets_nothing(world):
    with pytest.raises(FailedPreconditionError):
        await world.lease(executor_id="unknown")


async def test_another_tenants_evaluation_does_not_exist(world):
    created = await world.create("mine")
    evaluation_id = created.name.removeprefix("evaluations/")
    with pytest.raises(NotFoundError):
        await world.service.evaluations.get("other", evaluation_id)
    with pytest.raises(NotFoundError):
        await world.service.evaluations.cancel("other", evaluation_id, "k", "")
    with pytest.raises(NotFoundError):
        await anext(world.service.events.read("other", evaluation_id, 0))
    with pytest.raises(NotFoundError):
        await anext(world.service.evaluations.read_output("other", evaluation_id, 1, 0, 0))


async def test_a_change_from_an_old_version_is_refused(world):
    created = await world.create()
    evaluation_id = created.name.removeprefix("evaluations/")

    def change_late(transaction):
        record = store.load(transaction.connection, evaluation_id)
        before = store.Before(record)
        before.version -= 1
        record.want_cancel("k", "", world.clock.now())
        store.save(transaction, record, before, world.clock.now())

    with pytest.raises(AbortedError):
        await world.service.database.write(change_late)
    assert (await world.get(created)).state == S.EVALUATION_STATE_QUEUED
    assert len(await world.events()) == 1


async def test_every_state_has_its_count(world):
    for tenant in ("t", "t", "u"):
        await world.create(tenant)
    await world.register()
    first = await world.lease_one()
    await world.report(report(first, finished(first)))
    counts = {tenant: await world.service.evaluations.counts(tenant) for tenant in ("t", "u")}
    assert {tenant: sum(c.values()) for tenant, c in counts.items()} == {"t": 2, "u": 1}
    assert sum(c.get(int(S.EVALUATION_STATE_SUCCEEDED), 0) for c in counts.values()) == 1
    assert world.service.database.queued == 2


async def test_a_lease_that_is_asked_for_before_a_new_start_registers_is_not_given_after_it(world):
    """Both wait for the writer together: the order in which they asked decides, not the one of their answers."""
    await world.register()
    await world.create()
    results = await asyncio.gather(world.register(boot_id="boot-2"), world.lease(), return_exceptions=True)
    assert results[0] == []
    assert isinstance(results[1], FailedPreconditionError)


async def test_executors_that_are_long_gone_make_room_for_new_ones(world, monkeypatch):
    """Where each start of an executor has a new id, the past ones would one day keep every new one out."""

    async def nothing(sweeper):
        return 0

    monkeypatch.setattr(executors, "MAX_EXECUTORS", 3)
    monkeypatch.setattr(Sweeper, "look", nothing)  # else the lease may be taken back when the clock is moved
    assignment = await world.running()  # ex-1 holds a lease: it stays
    await world.register(executor_id="gone")
    world.clock.advance(executors.FORGET_AFTER)
    await world.register(executor_id="live")
    with pytest.raises(FailedPreconditionError):
        await world.register(executor_id="new")
    world.clock.advance(timedelta(seconds=1))
    await world.register(executor_id="new")
    assert [one.executor.id for one in await world.service.executors.list()] == ["ex-1", "live", "new"]
    with pytest.raises(FailedPreconditionError):
        await world.lease(executor_id="gone")
    assert await world.renew(assignment) == ([], [])


async def test_what_is_refused_again_and_again_is_given_out_ever_more_rarely(world):
    """An executor whose disk is full refuses everything: that must not fill the log by the hour."""
    await world.create()
    await world.register()
    refused = work.Refused(reason="STORAGE_FULL: the disk is full")
    refused.retry_after.FromTimedelta(timedelta(seconds=5))
    leases = 0
    for _ in range(720):
        for assignment in await world.lease():
            leases += 1
            assert await world.report(report(assignment, refused=refused)) == []
        world.clock.advance(timedelta(seconds=5))
    assert 60 <= leases <= 80  # once a minute in the end; at first every 5 seconds
    world.clock.advance(timedelta(minutes=1))
    assert (await world.lease_one()).run_id.endswith(".1")
