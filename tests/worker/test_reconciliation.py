"""Where storage and the executor disagree about a run, that is mended at the start and from time to time, by name."""

import pytest

from crucible_worker import worker as domain
from tests.executor.test_runs import BLOCKS, begin
from tests.worker.support import working
from tests.worker.test_worker import listed, until

pytestmark = pytest.mark.slow


@pytest.fixture
def cases(caplog):
    """The cases that were logged, each with its run."""

    def logged():
        found = [one.fields for one in caplog.records if one.getMessage() == "reconciled"]
        return {(fields["case"], fields["run"]) for fields in found}

    return logged


async def test_run_without_a_lease_is_found_although_nothing_failed(executor, storage, monkeypatch, cases):
    monkeypatch.setattr(domain, "RECONCILE_SECONDS", 0.1)
    async with working(executor.keys, storage.port, executor.service.port) as worker:
        await worker.worker.connected()
        held = await storage.add(BLOCKS)
        await storage.until(lambda: held.started)
        stray = await begin(executor, {"name": "stray", **BLOCKS})
        registrations = storage.registrations

        async def cleared():
            return stray not in await listed(executor)

        await until(cleared)
        assert held.run_id in await listed(executor)
        assert storage.registrations == registrations
        executor.engine.release.set()
        await storage.until(lambda: held.over)
    assert held.record.termination.WhichOneof("kind") == "exited"
    assert cases() == {("run without a lease", stray)}


async def test_lease_whose_run_the_executor_does_not_know_is_named(executor, storage, cases):
    run = storage.make({})
    run.leased = True  # to a worker that died before it told its executor
    async with working(executor.keys, storage.port, executor.service.port):
        await storage.until(lambda: run.over)
    assert run.lost.confirmed_gone
    names = ("lease of an earlier worker or call", "run unknown to the executor")
    assert cases() == {(name, run.run_id) for name in names}
