"""Files of acknowledged runs go, whatever becomes of the call that acknowledged them and of the room on the disk."""

from __future__ import annotations

import asyncio
import os

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import runs
from tests.executor.support import RunningExecutor, running
from tests.executor.test_artifacts import files_of
from tests.executor.test_engine_breaker import until
from tests.executor.test_runs import states

LARGE = {"out": "o" * 300_000}


class FullDisk:
    """Takes no entry that acknowledges a run while it is `full`; counts those it did not take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        self.refused = 0
        self._write = os.write
        monkeypatch.setattr(os, "write", self._checked)
        monkeypatch.setattr(runs, "_JOURNAL_RETRY_SECONDS", 0.02)

    def _checked(self, fd: int, data: memoryview) -> int:
        if self.full and b"acknowledged" in bytes(data):
            self.refused += 1
            raise OSError(28, "No space left on device")
        return self._write(fd, data)


async def acknowledge_and_leave(executor: RunningExecutor, disk: FullDisk, run_ids: list[str]) -> None:
    """As a worker does whose deadline passes, or that ends."""
    call = asyncio.ensure_future(executor.service.runs.acknowledge(run_ids))
    await until(lambda: disk.refused > 0)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


async def test_files_go_when_there_is_room_again_although_the_caller_left(executor, tmp_path, monkeypatch):
    run_ids = [(await executor.execute(LARGE)).record.run_id for _ in range(3)]
    assert len({name.rpartition(".")[0] for name in files_of(executor)}) == 3
    disk = FullDisk(monkeypatch)
    await acknowledge_and_leave(executor, disk, run_ids)
    disk.full = False
    await until(lambda: files_of(executor) == [])
    await until(lambda: (tmp_path / "state/journal").read_text().count("acknowledged") == 3)


async def test_executor_stops_without_room_and_its_next_start_has_the_run(keys, tmp_path, monkeypatch):
    async with asyncio.timeout(20):
        async with running(keys, tmp_path / "state") as executor:
            run_id = (await executor.execute(LARGE)).record.run_id
            disk = FullDisk(monkeypatch)
            await acknowledge_and_leave(executor, disk, [run_id])
        disk.full = False
        async with running(keys, tmp_path / "state") as executor:
            assert await states(executor) == {run_id: ex.RUN_STATE_FINISHED}
            await executor.stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[run_id]))
            assert files_of(executor) == []
