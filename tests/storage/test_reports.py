"""Output and final records: nothing twice, nothing missing, nothing forged."""

import asyncio
import uuid

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import signing
from crucible_storage import final_records
from tests.storage import world as w
from tests.storage.world import exited, finished, killed, output, report, started

pytestmark = pytest.mark.slow

S = pb.EvaluationState


async def read(world, assignment, stream=w.STDOUT, offset=0, attempt=0):
    evaluation_id = assignment.evaluation.removeprefix("evaluations/")
    parts = [part async for part in world.service.evaluations.read_output("t", evaluation_id, stream, offset, attempt)]
    assert all(len(data) <= 64 << 10 for _, data in parts)
    return b"".join(data for _, data in parts)


async def test_output_that_is_stored_already_is_ignored(world):
    assignment = await world.running()
    for chunk in (output(b"abc"), output(b"abc"), output(b"bcde", 1), output(b"e", 4), output(b"abcdef")):
        assert await world.report(report(assignment, chunk)) == []
    assert await read(world, assignment) == b"abcdef"
    chunks = [event.output.data for event in await world.events() if event.WhichOneof("kind") == "output"]
    assert chunks == [b"abc", b"de", b"f"]


async def test_a_gap_in_output_is_refused_and_stores_nothing(world):
    assignment = await world.running()
    [rejected] = await world.report(report(assignment, output(b"abc"), output(b"x", 4)))
    assert rejected.reason == "INVALID_FIELD"
    assert "3 bytes are stored" in rejected.message
    assert await read(world, assignment) == b""
    assert len(await world.events()) == 3


async def test_output_can_be_read_from_any_offset(world):
    assignment = await world.running(output_bytes=1 << 20)
    data = bytes(range(256)) * 1024
    size = 50_001
    for begin in range(0, len(data), size):
        await world.report(report(assignment, output(data[begin : begin + size], begin)))
    for offset in (0, 1, 50_000, 50_001, 131_072, len(data) - 1, len(data), len(data) + 5):
        assert await read(world, assignment, offset=offset) == data[offset:]


async def test_output_of_earlier_attempts_stays_readable_and_apart(world):
    first = await world.running()
    failed = ex.RunTermination(sandbox_failed=ex.SandboxFailed(reason="broken"))
    await world.report(report(first, output(b"first"), finished(first, failed)))
    world.clock.advance(w.timedelta(seconds=5))
    second = await world.lease_one()
    await world.report(report(second, started(), output(b"2nd")))
    assert await read(world, second) == b"2nd"
    assert await read(world, second, attempt=1) == b"first"
    assert (await world.get(second)).stdout.preview == b"2nd"


async def test_more_output_than_the_spec_keeps_is_refused(world):
    assignment = await world.running(output_bytes=4)
    [rejected] = await world.report(report(assignment, output(b"12345")))
    assert rejected.reason == "INVALID_FIELD"
    assert await world.report(report(assignment, output(b"1234"))) == []


async def test_a_record_of_more_output_than_is_stored_is_refused_until_it_is_there(world):
    assignment = await world.running()
    end = finished(assignment, stdout=b"all of it")
    [rejected] = await world.report(report(assignment, output(b"all"), end))
    assert "attach again" in rejected.message
    assert await world.report(report(assignment, output(b"all of it"), end)) == []


async def test_output_that_differs_from_the_signed_digest_is_refused(world):
    assignment = await world.running()
    [rejected] = await world.report(report(assignment, output(b"FORGED"), finished(assignment, stdout=b"honest")))
    assert rejected.reason == "INVALID_RECORD"
    assert (await world.get(assignment)).state == S.EVALUATION_STATE_RUNNING


def forged_by_another_key(assignment):
    return w.signed(w.final_record(assignment, exited()), signing.generate().private_pem)


def forged_with_the_tickets_key(assignment):
    return w.signed(w.final_record(assignment, exited()), w.TICKETS.private_pem)


def of_another_context(assignment):
    return w.signed(w.final_record(assignment, exited()), context="crucible.ticket.v1")


def changed_after_signing(assignment):
    made = w.signed(w.final_record(assignment, exited(1)))
    made.payload = w.final_record(assignment, exited(0)).SerializeToString()
    return made


def of(**changes):
    def make(assignment):
        return w.signed(w.final_record(assignment, **{"termination": exited()} | changes))

    make.__name__ = f"of_another_{next(iter(changes))}"
    return make


@pytest.mark.parametrize(
    "forge",
    [
        forged_by_another_key,
        forged_with_the_tickets_key,
        of_another_context,
        changed_after_signing,
        of(run_id="00000000-0000-0000-0000-000000000000.1"),
        of(evaluation="evaluations/00000000-0000-0000-0000-000000000000"),
        of(attempt=2),
        of(lease_epoch=7),
        of(run_spec_sha256=b"x" * 32),
        of(executor_id="ex-2"),
        of(engine="subprocess"),
        of(limits=pb.Limits(output_bytes=1 << 20, cpus=1, memory_bytes=512 << 20)),
        of(limits=w.spec(output_bytes=2 << 20).limits),
        of(termination=ex.RunTermination()),
    ],
    ids=lambda forge: forge.__name__,
)
async def test_a_record_that_is_not_the_executors_of_this_run_is_refused(world, forge):
    assignment = await world.running()
    [rejected] = await world.report(report(assignment, ex.RunEvent(finished=forge(assignment))))
    assert rejected.reason == "INVALID_RECORD"
    assert (await world.get(assignment)).state == S.EVALUATION_STATE_RUNNING
    assert await world.report(report(assignment, finished(assignment))) == []


async def test_one_bad_report_does_not_cost_its_batch(world):
    await world.register()
    for _ in range(3):
        await world.create()
    one, two, three = await world.lease(3)
    rejected = await world.report(
        report(one, started(), output(b"1")), report(two, started(), output(b"x", 9)), report(three, started())
    )
    assert [refused.run_id for refused in rejected] == [two.run_id]
    states = [(await world.get(assignment)).state for assignment in (one, two, three)]
    assert states == [S.EVALUATION_STATE_RUNNING, S.EVALUATION_STATE_STARTING, S.EVALUATION_STATE_RUNNING]


async def test_a_report_that_is_refused_hides_no_output_of_another_that_came_before_it(world):
    """The refused one had the output of all written to be read back; that was undone with it."""
    one, two = await world.running(), await world.running()
    assert await world.report(report(one, output(b"1")), report(two, output(b"1"))) == []
    rejected = await world.report(
        report(one, output(b"2", 1)),
        report(two, output(b"2", 1)),
        report(two, finished(two, stdout=b"1x")),
        report(one, finished(one, stdout=b"12")),
    )
    assert [refused.run_id for refused in rejected] == [two.run_id]
    assert (await world.get(one)).state == S.EVALUATION_STATE_SUCCEEDED
    assert [await read(world, run) for run in (one, two)] == [b"12", b"12"]


async def test_a_killed_run_of_a_cancelled_evaluation_keeps_what_it_wrote(world):
    assignment = await world.running()
    await world.cancel(await world.get(assignment))
    await world.report(report(assignment, output(b"half"), finished(assignment, killed(), stdout=b"half")))
    done = await world.get(assignment)
    assert (done.state, done.stdout.preview) == (S.EVALUATION_STATE_CANCELLED, b"half")


@pytest.mark.parametrize(
    "event",
    [
        ex.RunEvent(),
        ex.RunEvent(started=ex.ProgramStarted(time=w.timestamp(1 << 62))),
        ex.RunEvent(output=ex.RunOutputChunk(data=b"x")),
        ex.RunEvent(output=ex.RunOutputChunk(stream=w.STDOUT, offset=-1, data=b"x")),
        ex.RunEvent(output=ex.RunOutputChunk(stream=w.STDOUT, data=bytes((64 << 10) + 1))),
        ex.RunEvent(finished=w.SignedBytes(payload=b"\xff", key_id="x", signature=b"")),
        ex.RunEvent(finished=w.SignedBytes(payload=bytes(1 << 20))),
    ],
)
async def test_malformed_events_are_refused_by_themselves(world, event):
    assignment = await world.running()
    [rejected] = await world.report(report(assignment, event))
    assert rejected.reason in ("INVALID_FIELD", "INVALID_RECORD")
    assert await world.report(report(assignment, finished(assignment))) == []


@pytest.mark.parametrize("run_id", ["", "x", "00000000-0000-0000-0000-000000000000.1", "x" * 5000])
async def test_a_report_of_no_run_is_stale(world, run_id):
    lease = w.work.LeaseRef(run_id=run_id, epoch=1)
    [rejected] = await world.report(w.work.RunReport(lease=lease, events=[started()]))
    assert rejected.reason == "STALE_LEASE"


async def test_output_before_the_start_was_reported_starts_it(world):
    await world.create()
    await world.register()
    assignment = await world.lease_one()
    assert await world.report(report(assignment, output(b"x"))) == []
    assert (await world.get(assignment)).state == S.EVALUATION_STATE_RUNNING
    await world.report(report(assignment, finished(assignment, stdout=b"x")))
    assert (await world.get(assignment)).start_time.ToMicroseconds() == w.START + 1_500


async def test_a_report_that_storage_itself_fails_at_does_not_hold_up_the_others(world, monkeypatch):
    await world.register()
    for _ in range(2):
        await world.create()
    bad, good = await world.lease(2)
    check = final_records.check_is_of

    def failing(final, record):
        if final.run_id == bad.run_id:
            raise KeyError("a fault of ours")
        check(final, record)

    monkeypatch.setattr(final_records, "check_is_of", failing)
    [rejected] = await world.report(report(bad, output(b"x"), finished(bad, stdout=b"x")), report(good, finished(good)))
    assert (rejected.run_id, rejected.reason) == (bad.run_id, "INTERNAL")
    assert (await world.get(good)).state == S.EVALUATION_STATE_SUCCEEDED
    assert (await world.get(bad)).state == S.EVALUATION_STATE_STARTING
    assert await read(world, bad) == b""


async def test_output_in_many_small_chunks_is_read_from_anywhere(world):
    assignment = await world.running()
    data = bytes(range(200))
    chunks = [output(data[start : start + 3], start) for start in range(0, 200, 3)]
    assert await world.report(report(assignment, *chunks)) == []
    evaluation_id = assignment.evaluation.removeprefix("evaluations/")
    for offset in (0, 1, 2, 3, 100, 197, 199, 200, 500):
        parts = world.service.evaluations.read_output("t", evaluation_id, w.STDOUT, offset, 0)
        assert b"".join([part async for _, part in parts]) == data[offset:]
    assert await world.report(report(assignment, finished(assignment, stdout=data))) == []
    assert (await world.get(assignment)).stdout.preview == data


async def test_a_reason_with_nul_is_stored_without_it(world):
    assignment = await world.running()
    lost = work.RunLost(reason="gone\0for good", confirmed_gone=True)
    assert await world.report(report(assignment, lost=lost)) == []
    assert [one.reason for one in (await world.get(assignment)).failed_attempts] == ["gone\ufffdfor good"]


async def test_report_can_lease_the_next_work_in_the_same_transaction(world):
    first = await world.running()
    second, third = await world.create(), await world.create()
    before = world.service.database.last_position
    rejected, given = await report_and_lease(world, report(first, finished(first)), count=1)
    assert world.service.database.last_position == before + 2
    assert (rejected, [one.evaluation for one in given]) == ([], [second.name])
    assert (await world.get(second)).state == S.EVALUATION_STATE_STARTING
    assert (await world.get(first)).state == S.EVALUATION_STATE_SUCCEEDED
    [next_one] = given
    rejected, given = await report_and_lease(world, report(next_one, finished(next_one)), count=5)
    assert (rejected, [one.evaluation for one in given]) == ([], [third.name])
    assert (await report_and_lease(world, report(next_one, finished(next_one)), count=5)) == ([], [])


async def test_report_is_stored_whatever_becomes_of_its_lease(world):
    running = await world.running()
    waiting = await world.create()
    for boot_id in ("boot-0", ""):  # an earlier start of the executor
        rejected, given = await report_and_lease(world, report(running, started()), count=1, boot_id=boot_id)
        assert (rejected, given) == ([], [])
    stale = report(running, finished(running))
    stale.lease.epoch += 1
    rejected, given = await report_and_lease(world, stale, count=1)
    assert [one.reason for one in rejected] == ["STALE_LEASE"]
    assert [one.evaluation for one in given] == [waiting.name]
    assert (await world.get(running)).state == S.EVALUATION_STATE_RUNNING


async def test_work_leased_with_a_report_whose_worker_left_goes_back_at_once(world):
    running = await world.running()
    created = await world.create()
    leaving = asyncio.create_task(report_and_lease(world, report(running, finished(running)), count=1))
    await asyncio.sleep(0)  # its write waits now
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    [assignment] = await world.lease(wait=10.0)
    assert assignment.evaluation == created.name
    evaluation = await world.get(created)
    assert (evaluation.attempt, len(evaluation.failed_attempts)) == (1, 0)
    assert (await world.get(running)).state == S.EVALUATION_STATE_SUCCEEDED


async def test_wish_for_work_whose_answer_got_lost_is_answered_again_with_the_same(world):
    running = await world.running()
    for _ in range(3):
        await world.create()
    _, given = await report_and_lease(world, report(running, finished(running)), count=2, wish="a")
    assert len(given) == 2
    again = report(given[0], started())
    assert await report_and_lease(world, again, count=2, wish="a") == ([], given[1:])  # the other one is under way
    _, [third] = await report_and_lease(world, again, count=2, wish="b")
    assert third.run_id not in {one.run_id for one in given}


async def report_and_lease(world, *reports, count, boot_id="boot-1", wish=None):
    storing = world.service.reports.storing("ex-1", reports)
    more = work.LeaseMore(since=w.told(boot_id), max_runs=count, request_id=wish or str(uuid.uuid4()))
    return await world.service.leases.after(storing, "ex-1", more)
