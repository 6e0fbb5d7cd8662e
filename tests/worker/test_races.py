"""What arrives twice, late or never: no run is dropped for another's sake, and nothing is called in a tight loop."""

import asyncio
from datetime import timedelta

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc.errors import InternalError
from crucible_worker.reporter import Reporter
from tests.worker.support import working
from tests.worker.test_worker import BLOCKS, all_acknowledged, listed, until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("answers_lost", [0, 1])
async def test_late_answer_to_a_refusal_leaves_the_next_lease_of_the_same_run_alone(
    executor, storage, worker, monkeypatch, answers_lost
):
    boot = asyncio.Event()
    create = executor.engine.create

    async def create_slowly(sandbox_class):
        await boot.wait()
        return await create(sandbox_class)

    monkeypatch.setattr(executor.engine, "create", create_slowly)
    storage.lease_duration = timedelta(seconds=0.3)
    storage.answering.clear()
    storage.ticket_changes = {"executor_id": "another"}
    run = await storage.add(BLOCKS)
    await storage.until(lambda: run.refused)
    storage.ticket_changes = {}
    run.refused, run.epoch = None, 2  # storage gives it out again, before the answer to the refusal arrives
    await storage.put(run)

    async def accepted():
        return (await listed(executor)).get(run.run_id) == ex.RUN_STATE_RUNNING

    await until(accepted)
    storage.answer_lost = answers_lost
    storage.answering.set()
    renewals = storage.renewals
    await storage.until(lambda: storage.renewals >= renewals + 3)
    assert worker.worker.runs[run.run_id].epoch == 2
    boot.set()
    executor.engine.release.set()
    await storage.until(lambda: run.over)
    assert run.record.termination.WhichOneof("kind") == "exited"
    await all_acknowledged(executor)


async def test_stop_that_is_told_again_and_again_is_one_kill(executor, storage, worker, monkeypatch):
    storage.lease_duration = timedelta(seconds=0.3)
    calls, may_answer = [], asyncio.Event()
    kill = executor.service.runs.kill

    async def kill_slowly(run_id):
        calls.append(run_id)
        await may_answer.wait()
        return await kill(run_id)

    monkeypatch.setattr(executor.service.runs, "kill", kill_slowly)
    run = await storage.add(BLOCKS)
    await storage.until(lambda: run.started)
    await storage.stop(run)
    renewals = storage.renewals
    await storage.until(lambda: storage.renewals >= renewals + 5)
    assert calls == [run.run_id]
    may_answer.set()
    await storage.until(lambda: run.over)


async def test_executor_that_fails_every_attach_is_not_called_in_a_tight_loop(keys, executor, storage, monkeypatch):
    async with working(keys, storage.port, executor.service.port) as first:
        run = await storage.add(BLOCKS)
        await storage.until(lambda: run.started)
        await first.crash()
    calls = 0

    def failing(run_id):
        nonlocal calls
        calls += 1
        raise InternalError("INTERNAL", "the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(executor.service.runs, "get", failing)
        async with working(keys, storage.port, executor.service.port):
            await asyncio.sleep(1)  # what is looked at is how often it calls in that time
            assert 1 <= calls <= 12
            patched.undo()
            executor.engine.release.set()
            await storage.until(lambda: run.over)
    assert run.record.termination.WhichOneof("kind") == "exited"


@pytest.mark.parametrize("when", ["at its start", "at its end"])
async def test_unforeseen_error_ends_the_run_that_it_met_and_no_other(executor, storage, worker, monkeypatch, when):
    take = Reporter.take
    met: list[str] = []

    def taken(self, run, event):
        if run.run_id in met and event.HasField("finished" if when == "at its end" else "started"):
            raise ValueError("unforeseen")
        take(self, run, event)

    monkeypatch.setattr(Reporter, "take", taken)
    bad = storage.make(BLOCKS)
    met.append(bad.run_id)
    await storage.put(bad)
    good = await storage.add(BLOCKS)
    await storage.until(lambda: good.started and (bad.started or bad.lost))
    executor.engine.release.set()
    await storage.until(lambda: good.over and bad.over)
    assert good.record.termination.WhichOneof("kind") == "exited"
    assert "ValueError" in bad.lost.reason
    assert bad.lost.confirmed_gone
    await all_acknowledged(executor)
    assert not worker.worker.runs
