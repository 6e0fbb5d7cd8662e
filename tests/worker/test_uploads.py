"""The files that a program left are stored before its end is reported, however often that has to be tried."""

import asyncio

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc.errors import InvalidArgumentError, UnavailableError
from tests.conformance.harness import eventually
from tests.executor.support import Keys, ScriptedEngine, running
from tests.worker.support import MemoryStorage, working
from tests.worker.test_worker import all_acknowledged

pytestmark = pytest.mark.slow

BIG = 3_000_000
LEAVES = {"out": "x", "leaves": {"result.json": "{}", "deep/big": BIG, "empty": ""}}
EXPECTED = {"result.json": b"{}", "deep/big": b"x" * BIG, "empty": b""}


@pytest.fixture
def storage(storage: MemoryStorage) -> MemoryStorage:
    storage.ticket_changes = {"max_artifact_bytes": 1 << 23}
    return storage


async def test_files_are_stored_before_the_end_is_reported(executor, storage, worker):
    run = await storage.add(LEAVES)
    await storage.until(lambda: run.over)
    assert run.files == EXPECTED
    assert run.record.termination.exited.code == 0
    assert len(storage.uploads) == 3
    assert run.out[1] == b"x"
    await all_acknowledged(executor)
    kept = executor.service._state.path / "outputs"
    await eventually(lambda: not list(kept.iterdir()))  # after their journal entry


async def test_bytes_that_storage_has_already_are_not_sent_again(executor, storage, worker):
    runs = [await storage.add(LEAVES) for _ in range(8)]
    await storage.until(lambda: all(run.over for run in runs))
    assert all(run.files == EXPECTED for run in runs)
    assert all(run.record is not None for run in runs)


async def test_a_store_that_is_down_delays_and_loses_nothing(executor, storage, worker):
    storage.upload_errors.extend(UnavailableError("ARTIFACT_STORE_UNAVAILABLE", "away") for _ in range(3))
    run = await storage.add(LEAVES)
    await storage.until(lambda: run.over)
    assert run.files == EXPECTED
    assert run.record is not None
    assert len(storage.uploads) == 6


async def test_a_slow_store_holds_up_neither_slots_nor_leases(executor, storage, worker):
    """The lease of 1.5 s is renewed meanwhile; eight runs leave files, with four slots."""
    storage.store_is_up.clear()
    runs = [await storage.add(LEAVES) for _ in range(8)]
    await storage.until(lambda: all(run.started for run in runs))
    renewals = storage.renewals
    await storage.until(lambda: storage.renewals > renewals + 3)
    assert not any(run.over for run in runs)
    storage.store_is_up.set()
    await storage.until(lambda: all(run.over for run in runs))
    assert all(run.files == EXPECTED and run.lost is None for run in runs)


async def test_a_restarted_worker_uploads_again(keys: Keys, executor, storage):
    storage.store_is_up.clear()
    async with working(keys, storage.port, executor.service.port) as first:
        run = await storage.add({**LEAVES, "name": "once"})
        await storage.until(lambda: storage.uploads)
        await first.crash()
    storage.store_is_up.set()
    async with working(keys, storage.port, executor.service.port):
        await storage.until(lambda: run.over)
        assert run.files == EXPECTED
        assert run.record is not None
        assert executor.engine.started() == ["once"]
        await all_acknowledged(executor)


async def test_a_restarted_executor_still_has_the_files(keys: Keys, tmp_path, storage):
    engine = ScriptedEngine(tmp_path / "starts")
    storage.store_is_up.clear()
    async with running(keys, tmp_path / "state", engine) as executor:
        port = executor.service.port
        async with working(keys, storage.port, port):
            run = await storage.add(LEAVES)
            await storage.until(lambda: storage.uploads)
    storage.upload_errors.append(UnavailableError("ARTIFACT_STORE_UNAVAILABLE", "away"))
    storage.store_is_up.set()
    async with (
        running(keys, tmp_path / "state", engine, listen=f"127.0.0.1:{port}") as executor,
        working(keys, storage.port, port),
    ):
        await storage.until(lambda: run.over)
        assert run.files == EXPECTED
        assert run.record is not None
        await all_acknowledged(executor)


async def test_files_of_a_lost_lease_are_given_up(executor, storage, worker):
    storage.store_is_up.clear()
    run = await storage.add(LEAVES)
    await storage.until(lambda: storage.uploads)
    run.epoch += 1  # another worker has it now
    storage.store_is_up.set()
    await all_acknowledged(executor)
    assert run.record is None
    assert worker.worker.runs == {}


async def test_a_file_that_storage_never_takes_makes_the_run_a_lost_one(executor, storage, worker):
    storage.upload_errors.append(InvalidArgumentError("ARTIFACT_MISMATCH", "not these bytes"))
    run = await storage.add({"leaves": {"result.json": "{}"}})
    await storage.until(lambda: run.over)
    assert run.record is None
    assert "ARTIFACT_MISMATCH" in run.lost.reason
    assert run.lost.confirmed_gone
    await all_acknowledged(executor)


async def test_a_run_that_is_stopped_while_its_files_are_stored_keeps_its_own_end(executor, storage, worker):
    storage.store_is_up.clear()
    run = await storage.add(LEAVES)
    await storage.until(lambda: storage.uploads)
    await storage.stop(run)
    await storage.until(lambda: storage.renewals > 2)
    storage.store_is_up.set()
    await storage.until(lambda: run.over)
    assert run.record.termination.exited.code == 0
    assert run.files == EXPECTED


async def test_the_worker_stops_at_once_while_a_store_hangs(executor, storage, worker):
    storage.store_is_up.clear()
    run = await storage.add(LEAVES)
    await storage.until(lambda: storage.uploads)
    async with asyncio.timeout(5):
        await worker.stop()
    assert run.record is None
    answer = await executor.stub.ListRuns(ex.ListRunsRequest())
    assert [one.state for one in answer.runs] == [ex.RUN_STATE_FINISHED]
