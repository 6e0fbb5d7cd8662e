"""The worker between storage and a real executor: nothing lost, nothing doubled, stops at once."""

import asyncio
import time
from datetime import timedelta

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc.errors import AlreadyExistsError
from crucible_worker import worker as worker_module
from tests.executor.support import ScriptedEngine, limits, running
from tests.worker.support import MemoryStorage, working

pytestmark = pytest.mark.slow

BLOCKS = {"block": True}


async def listed(executor):
    answer = await executor.stub.ListRuns(ex.ListRunsRequest())
    return {run.run_id: run.state for run in answer.runs}


async def until(condition, seconds=15):
    """For what is told to nobody: looks every 10 ms, within a limit."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # the executor has no event for it
            await asyncio.sleep(0.01)


async def all_acknowledged(executor):
    async def none_left():
        return await listed(executor) == {}

    await until(none_left)


async def test_runs_are_carried_to_their_end_and_acknowledged(executor, storage, worker):
    runs = [await storage.add({"out": f"out {n}", "err": f"err {n}", "exit": n % 3}) for n in range(20)]
    await storage.until(lambda: all(run.over for run in runs))
    for n, run in enumerate(runs):
        assert run.out == {1: f"out {n}".encode(), 2: f"err {n}".encode()}
        assert run.record.termination.exited.code == n % 3
        assert run.started == 1
    assert storage.calls < 60
    await all_acknowledged(executor)


async def test_many_that_wait_to_be_acknowledged_do_not_wait_for_more(executor, storage, worker, monkeypatch):
    monkeypatch.setattr(worker_module, "ACKNOWLEDGE_DELAY_SECONDS", 3600)
    monkeypatch.setattr(worker_module, "ACKNOWLEDGE_AT_ONCE", 3)
    runs = [await storage.add({"out": "x"}) for _ in range(3)]
    await storage.until(lambda: all(run.over for run in runs))
    await all_acknowledged(executor)


async def test_a_short_run_travels_in_one_report(executor, storage, worker):
    await storage.until(lambda: storage.registrations)
    run = await storage.add({"out": "x"})
    await storage.until(lambda: run.over)
    assert storage.calls == 1


async def test_no_more_work_is_leased_than_there_are_slots(executor, storage, worker):
    runs = [await storage.add(BLOCKS) for _ in range(10)]
    await storage.until(lambda: sum(run.started for run in runs) == 4)
    assert sum(run.leased for run in runs) == 4
    executor.engine.release.set()
    await storage.until(lambda: all(run.over for run in runs))
    assert all(run.refused is None for run in runs)


async def test_report_of_an_end_brings_the_next_work(keys, executor, storage):
    runs = [await storage.add({"out": "x"}) for _ in range(40)]
    async with working(keys, storage.port, executor.service.port):
        await storage.until(lambda: all(run.over for run in runs))
        assert all(run.refused is None and run.lost is None for run in runs)
        assert storage.leased_with_reports >= 30
        await all_acknowledged(executor)


async def test_work_that_comes_while_the_worker_stops_goes_back_untouched(executor, storage, worker):
    running = [await storage.add(BLOCKS) for _ in range(4)]
    await storage.until(lambda: all(run.started for run in running))
    waiting = await storage.add({"name": "waiting"})
    storage.answering.clear()
    await storage.stop(running[0])
    await storage.until(lambda: waiting.leased)  # with the report of the end, which is not answered yet
    stopping = asyncio.create_task(worker.stop())

    async def stops():
        return worker.worker._stopped

    await until(stops)
    storage.answering.set()
    await stopping
    assert waiting.refused is not None
    assert not waiting.refused.failed_attempt
    assert "waiting" not in executor.engine.started()


async def test_output_larger_than_a_report_arrives_whole(executor, storage, worker):
    storage.ticket_changes = {"asked": limits(output_bytes=8 << 20)}
    run = await storage.add({"out": "0123456789abcdef" * 4096, "times": 100})
    await storage.until(lambda: run.over)
    assert run.out[1] == b"0123456789abcdef" * 4096 * 100


async def test_stop_reaches_the_executor_within_100_ms(executor, storage, worker):
    worst = 0.0
    for _ in range(5):
        run = await storage.add(BLOCKS)
        await storage.until(lambda run=run: run.started)
        begun = time.monotonic()
        await storage.stop(run)
        await storage.until(lambda run=run: run.over)
        worst = max(worst, time.monotonic() - begun)
        assert run.record.termination.killed.cause == ex.KILL_CAUSE_REQUESTED
    print(f"stop stored to end stored, worst of 5: {worst * 1000:.1f} ms")
    assert worst < 0.1


async def test_stop_of_work_that_is_on_its_way_keeps_it_from_starting(executor, storage, worker):
    await storage.until(lambda: storage.registrations and storage.stop_queues)
    run = storage.make({"name": "never"})
    await storage.stop(run)

    async def refused():
        return run.run_id in await listed(executor)

    await until(refused)
    await storage.put(run)
    await storage.until(lambda: run.over)
    assert run.lost.confirmed_gone
    assert executor.engine.started() == []
    await all_acknowledged(executor)


async def test_restarted_worker_attaches_where_storage_is(keys, executor, storage):
    async with working(keys, storage.port, executor.service.port) as first:
        run = await storage.add({"out": "first ", **BLOCKS, "last": "second"})
        await storage.until(lambda: run.out[1] == b"first ")
        await first.stop()
    assert await listed(executor) == {run.run_id: ex.RUN_STATE_RUNNING}
    async with working(keys, storage.port, executor.service.port):
        executor.engine.release.set()
        await storage.until(lambda: run.over)
    assert run.out[1] == b"first second"
    assert run.record.termination.WhichOneof("kind") == "exited"


async def test_killed_worker_loses_nothing(keys, executor, storage):
    async with working(keys, storage.port, executor.service.port) as first:
        runs = [await storage.add({"name": f"n{n}", "out": "a" * 1000, **BLOCKS, "last": "b"}) for n in range(4)]
        await storage.until(lambda: all(run.started for run in runs))
        await first.crash()
    executor.engine.release.set()
    async with working(keys, storage.port, executor.service.port):
        await storage.until(lambda: all(run.over for run in runs))
        assert all(run.out[1] == b"a" * 1000 + b"b" for run in runs)
        assert sorted(executor.engine.started()) == ["n0", "n1", "n2", "n3"]
        await all_acknowledged(executor)


TRIED = [["PROBES", "/etc/shadow"], ["CONNECTIONS", "10.0.0.1:80"]]


async def test_what_a_program_tries_reaches_storage_while_it_runs(executor, storage, worker):
    run = await storage.add({"tried": TRIED, **BLOCKS})
    await storage.until(lambda: len(run.behaviour) == 2)
    assert run.record is None
    assert [action.example for update in run.behaviour for action in update.actions] == ["/etc/shadow", "10.0.0.1:80"]
    executor.engine.release.set()
    await storage.until(lambda: run.over)
    assert len(run.behaviour) == 2


async def test_short_run_that_tried_something_travels_in_one_report(executor, storage, worker):
    await storage.until(lambda: storage.registrations)
    run = await storage.add({"tried": TRIED})
    await storage.until(lambda: run.over)
    assert (storage.calls, len(run.behaviour)) == (1, 2)


async def test_restarted_worker_tells_no_behaviour_update_twice(keys, executor, storage):
    async with working(keys, storage.port, executor.service.port) as first:
        run = await storage.add({"tried": TRIED, **BLOCKS})
        await storage.until(lambda: len(run.behaviour) == 2)
        await first.crash()
    del run.behaviour[1:]  # as if storage had lost the answer, and the rest, with it
    async with working(keys, storage.port, executor.service.port):
        await storage.until(lambda: len(run.behaviour) == 2)
        executor.engine.release.set()
        await storage.until(lambda: run.over)
    assert [update.sequence for update in run.behaviour] == [1, 2]


async def test_samples_reach_storage_once_also_over_a_restart_of_the_worker(keys, executor, storage):
    async with working(keys, storage.port, executor.service.port) as first:
        run = await storage.add({"samples": 40, **BLOCKS})
        await storage.until(lambda: len(run.samples) == 32)
        await first.crash()
    assert run.record is None
    del run.samples[20:]  # as if storage had lost the answer, and the rest, with it
    async with working(keys, storage.port, executor.service.port):
        await storage.until(lambda: len(run.samples) == 32)
        executor.engine.release.set()
        await storage.until(lambda: run.over)
    assert [sample.memory_bytes for sample in run.samples] == list(range(1, 41))


async def test_short_run_that_was_sampled_travels_in_one_report(executor, storage, worker):
    await storage.until(lambda: storage.registrations)
    run = await storage.add({"samples": 3})
    await storage.until(lambda: run.over)
    assert (storage.calls, len(run.samples)) == (1, 3)


async def test_storage_away_for_a_while_loses_nothing(executor, storage, worker):
    runs = [await storage.add({"out": "a", **BLOCKS, "last": "b"}) for _ in range(4)]
    await storage.until(lambda: all(run.started for run in runs))
    storage.down = True
    executor.engine.release.set()

    async def all_finished():
        states = await listed(executor)
        return len(states) == 4 and set(states.values()) == {ex.RUN_STATE_FINISHED}

    await until(all_finished)
    assert not any(run.over for run in runs)
    storage.down = False
    more = await storage.add({"out": "later"})
    await storage.until(lambda: all(run.over for run in [*runs, more]))
    assert all(run.out[1] == b"ab" for run in runs)
    await all_acknowledged(executor)


async def test_report_whose_answer_got_lost_is_delivered_again_without_harm(executor, storage, worker):
    await storage.until(lambda: storage.registrations)
    storage.answer_lost = 2
    runs = [await storage.add({"out": "a" * 50}) for _ in range(6)]
    await storage.until(lambda: all(run.over for run in runs))
    assert all(run.out[1] == b"a" * 50 for run in runs)
    await all_acknowledged(executor)


async def test_lost_lease_is_killed_and_cleared_away(executor, storage, worker):
    run = await storage.add(BLOCKS)
    await storage.until(lambda: run.started)
    run.epoch += 1  # somebody else has it now
    await all_acknowledged(executor)
    assert not run.over
    assert worker.worker.runs == {}
    assert executor.engine.destroyed == 1


async def test_stale_report_is_killed_and_cleared_away(executor, storage, worker):
    storage.lease_duration = timedelta(hours=1)
    run = await storage.add({"out": "x", **BLOCKS})
    storage.reject[run.run_id] = "STALE_LEASE"
    await storage.until(lambda: storage.calls)
    await all_acknowledged(executor)


async def test_gap_in_what_storage_has_is_filled_again(executor, storage, worker):
    run = await storage.add({"out": "abcdef", **BLOCKS, "last": "ghi"})
    await storage.until(lambda: run.out[1] == b"abcdef")
    run.out[1] = b"ab"  # storage lost some, say by a restore
    executor.engine.release.set()
    await storage.until(lambda: run.over)
    assert run.out[1] == b"abcdefghi"


async def test_record_that_storage_never_takes_ends_as_lost(executor, storage, worker):
    storage.takes_records = False
    run = await storage.add({"out": "x"})
    await storage.until(lambda: run.over)
    assert run.lost.confirmed_gone
    assert "INVALID_RECORD" in run.lost.reason
    assert run.record is None
    await all_acknowledged(executor)
    assert worker.worker.runs == {}


async def test_permits_are_extended_for_as_long_as_storage_renews(executor, storage, worker):
    storage.lease_duration, storage.orphan_grace = timedelta(seconds=0.3), timedelta(seconds=0.6)
    async with asyncio.timeout(20):
        run = await storage.add(BLOCKS)
        await storage.until(lambda: run.started)
        worker.worker._registered.clear()
        worker.worker._look.set()
        await storage.until(lambda: storage.registrations >= 2)
        before = storage.renewals
        await storage.until(lambda: storage.renewals >= before + 10)
        assert not run.over
        assert (await listed(executor))[run.run_id] == ex.RUN_STATE_RUNNING
        executor.engine.release.set()
        await storage.until(lambda: run.over)
        assert run.record.termination.WhichOneof("kind") == "exited"


async def test_run_ends_by_its_permit_when_storage_stays_away(keys, tmp_path, storage):
    storage.lease_duration, storage.orphan_grace = timedelta(seconds=0.3), timedelta(seconds=0.6)
    async with (
        running(keys, tmp_path / "state", orphan_grace=timedelta(seconds=0.6)) as executor,
        working(keys, storage.port, executor.service.port),
    ):
        run = await storage.add(BLOCKS)
        await storage.until(lambda: run.started)
        storage.down = True

        async def finished():
            return await listed(executor) == {run.run_id: ex.RUN_STATE_FINISHED}

        await until(finished)
        storage.down = False
        await storage.until(lambda: run.over)
        assert run.record.termination.killed.cause == ex.KILL_CAUSE_PERMIT_EXPIRED


async def test_permanent_refusal_is_told_as_such(executor, storage, worker):
    storage.ticket_changes = {"asked": limits(memory_bytes=1 << 50)}
    run = await storage.add({})
    await storage.until(lambda: run.over)
    assert run.refused.permanent
    assert "ABOVE_CEILING" in run.refused.reason


async def test_expired_ticket_is_a_failed_attempt_and_not_the_end(executor, storage, worker):
    storage.ticket_changes = {"since": executor.tell()}
    executor.uptime.ahead += 16
    run = await storage.add({})
    await storage.until(lambda: run.over)
    assert run.refused.failed_attempt
    assert not run.refused.permanent
    assert "expired" in run.refused.reason


async def test_restarted_executor_is_registered_anew_and_its_lost_runs_are_reported(keys, tmp_path):
    storage = MemoryStorage(keys)
    from tests.worker.support import serving_storage

    async with serving_storage(keys, storage) as storage_port:
        async with running(keys, tmp_path / "state", shutdown_grace=timedelta(0)) as executor:
            port = executor.service.port
            async with working(keys, storage_port, port) as first:
                run = await storage.add(BLOCKS)
                await storage.until(lambda: run.started)
                await first.crash()
        engine = ScriptedEngine(tmp_path / "starts")
        async with (
            running(keys, tmp_path / "state", engine, listen=f"127.0.0.1:{port}") as executor,
            working(keys, storage_port, port),
        ):
            await storage.until(lambda: run.over)
            assert storage.executor.boot_id == executor.service.boot_id
            assert run.record.termination.killed.cause == ex.KILL_CAUSE_SHUTDOWN
            again = await storage.add({"out": "new boot"})
            await storage.until(lambda: again.over)
            assert again.out[1] == b"new boot"


async def test_executor_restarting_under_a_living_worker(keys, tmp_path, storage):
    async with running(keys, tmp_path / "state") as executor:
        port = executor.service.port
        manager = working(keys, storage.port, port)
        await manager.__aenter__()
        run = await storage.add({"out": "x", **BLOCKS})
        await storage.until(lambda: run.started and run.out[1])
    try:
        registered = storage.registrations
        async with running(keys, tmp_path / "state", listen=f"127.0.0.1:{port}"):
            await storage.until(lambda: storage.registrations > registered)
            await storage.until(lambda: run.over)
            assert run.record.termination.WhichOneof("kind") == "killed"
            again = await storage.add({"out": "again"})
            await storage.until(lambda: again.over)
            assert again.out[1] == b"again"
    finally:
        await manager.__aexit__(None, None, None)


async def test_worker_stops_quickly_and_leaves_runs_alone(executor, storage, worker):
    run = await storage.add(BLOCKS)
    await storage.until(lambda: run.started)
    begun = time.monotonic()
    await worker.stop()
    assert time.monotonic() - begun < 2
    assert await listed(executor) == {run.run_id: ex.RUN_STATE_RUNNING}


async def test_run_of_nobodys_lease_is_ended(keys, executor, storage):
    request = executor.request(BLOCKS)
    async for _ in executor.stub.Execute(request):
        break
    async with working(keys, storage.port, executor.service.port):
        await all_acknowledged(executor)
    assert executor.engine.destroyed == 1


async def test_lease_that_never_reached_the_executor_is_a_lost_attempt_which_can_never_start(keys, executor, storage):
    run = storage.make({"name": "never"})
    run.leased = True  # by a worker that died before it called the executor
    async with working(keys, storage.port, executor.service.port):
        await storage.until(lambda: run.over)
        assert run.lost is not None
        assert run.lost.confirmed_gone
        assert run.refused is None  # that would be no attempt, and the same id would be given out again
        await all_acknowledged(executor)
    assert executor.engine.started() == []
    with pytest.raises(AlreadyExistsError):
        async for _ in executor.stub.Execute(executor.request({"name": "late"}, run_id=run.run_id)):
            pass
