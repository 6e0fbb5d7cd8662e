"""Room for kept output: bounded in bytes and by the free disk, and nothing that is kept is lost for a new run."""

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor.settings import Settings
from crucible_rpc.errors import ResourceExhaustedError
from tests.executor.support import limits, running
from tests.executor.test_runs import BLOCKS, attach, begin

MIB = 1 << 20
HALF = {"out": "x" * (MIB // 2)}


async def refused(executor, **changes):
    with pytest.raises(ResourceExhaustedError) as caught:
        await executor.execute(HALF, **changes)
    assert caught.value.reason == "STORAGE_FULL"
    assert caught.value.retry_after
    return caught.value.message


async def test_no_run_is_taken_that_could_make_the_kept_output_too_large(keys, tmp_path):
    async with running(keys, tmp_path / "state", max_output_bytes=MIB, max_kept_bytes=3 * MIB) as executor:
        first = await executor.execute(HALF)  # each may keep 1 MiB of either stream
        second = await executor.execute(HALF)
        third = await executor.execute(HALF, asked=limits(output_bytes=MIB // 2))
        assert "MAX_KEPT_BYTES" in await refused(executor)
        assert executor.engine.created == 3
        for ended in (first, second, third):
            assert await attach(executor, ended.record.run_id) == ended  # nothing of it was given up
        small = await executor.execute({"out": "y"}, asked=limits(output_bytes=1000))
        assert small.stdout == b"y"
        await executor.stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[first.record.run_id, second.record.run_id]))
        assert (await executor.execute(HALF)).stdout == first.stdout


async def test_a_run_that_is_under_way_counts_as_large_as_it_may_become(keys, tmp_path):
    async with running(keys, tmp_path / "state", max_output_bytes=MIB, max_kept_bytes=3 * MIB) as executor:
        run_id = await begin(executor, BLOCKS)
        await refused(executor)
        executor.engine.release.set()
        await attach(executor, run_id)
        assert (await executor.execute(HALF)).record.termination.exited.code == 0


async def test_what_an_earlier_start_kept_counts_and_stays(keys, tmp_path):
    bounds = {"max_output_bytes": MIB, "max_kept_bytes": 2 * MIB}
    async with running(keys, tmp_path / "state", **bounds) as executor:
        kept = await executor.execute(HALF)
    async with running(keys, tmp_path / "state", **bounds) as executor:
        await refused(executor)
        assert await attach(executor, kept.record.run_id) == kept


async def test_no_run_is_taken_when_the_disk_is_nearly_full(keys, tmp_path):
    async with running(keys, tmp_path / "state", min_free_bytes=1 << 60) as executor:
        text = await refused(executor)
        assert "MIN_FREE_BYTES" in text
        assert "are free on the disk of" in text
        assert executor.engine.created == 0


def test_bound_below_what_one_run_may_keep_is_refused_at_the_start():
    with pytest.raises(ValueError, match="MAX_KEPT_BYTES"):
        Settings(max_output_bytes=MIB, max_kept_bytes=2 * MIB - 1)
