"""The files that a program left are listed in the record that the executor signs, and kept until storage has them."""

import errno
import hashlib
import shutil

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from crucible_executor.spool import Spool
from crucible_rpc.channel import connect
from crucible_rpc.errors import NotFoundError, PermissionDeniedError
from tests.executor.support import running
from tests.executor.test_room import refused
from tests.executor.test_runs import BLOCKS, attach, begin

MIB = 1 << 20
LEAVES = {"leaves": {"result.json": '{"score": 1}', "deep/er/log": 700_000, "empty": ""}}
LIMIT = {"max_artifact_bytes": MIB}


async def read(executor, run_id: str, path: str) -> bytes:
    request = ex.ReadArtifactRequest(run_id=run_id, path=path)
    return b"".join([answer.data async for answer in executor.stub.ReadArtifact(request)])


def files_of(executor) -> list[str]:
    return sorted(file.name for file in (executor.service._state.path / "outputs").iterdir())


async def test_files_are_listed_in_the_signed_record_and_can_be_read(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        record = (await executor.execute(LEAVES, **LIMIT)).record
        expected = {"deep/er/log": b"x" * 700_000, "empty": b"", "result.json": b'{"score": 1}'}
        assert [file.path for file in record.artifacts] == list(expected)
        for file in record.artifacts:
            content = await read(executor, record.run_id, file.path)
            assert content == expected[file.path]
            assert file.bytes_total == file.bytes_kept == len(content)
            assert file.sha256 == hashlib.sha256(content).digest()
        assert (record.artifacts_omitted, record.artifacts_not_collected) == (0, "")


async def test_a_file_that_the_run_did_not_leave_cannot_be_read(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        run_id = (await executor.execute(LEAVES, **LIMIT)).record.run_id
        for asked in ((run_id, "../journal"), (run_id, ""), (run_id.replace(".1", ".2"), "result.json")):
            with pytest.raises(NotFoundError):
                await read(executor, *asked)


@pytest.mark.parametrize("caller", ["storage", "gateway", "executor"])
async def test_nobody_but_the_worker_reads_files(keys, tmp_path, caller):
    async with running(keys, tmp_path / "state") as executor:
        run_id = (await executor.execute(LEAVES, **LIMIT)).record.run_id
        async with connect(f"127.0.0.1:{executor.service.port}", keys.tls(caller), "executor") as channel:
            request = ex.ReadArtifactRequest(run_id=run_id, path="result.json")
            with pytest.raises(PermissionDeniedError):
                [_ async for _ in ExecutorServiceStub(channel).ReadArtifact(request)]


async def test_the_lower_bound_of_ticket_and_executor_cuts_and_is_told(keys, tmp_path):
    async with running(keys, tmp_path / "state", max_artifact_bytes=1000) as executor:
        for bound, kept in ((MIB, 1000), (10, 10)):
            record = (await executor.execute({"leaves": {"a": 2000, "b": 5}}, max_artifact_bytes=bound)).record
            assert [(file.bytes_kept, file.bytes_total) for file in record.artifacts] == [(kept, 2000), (0, 5)]
            assert await read(executor, record.run_id, "a") == b"x" * kept
            assert await read(executor, record.run_id, "b") == b""


async def test_without_leave_of_storage_nothing_is_collected(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        record = (await executor.execute(LEAVES)).record
        assert not record.artifacts
        assert files_of(executor) == []


async def test_files_outlive_the_executor_until_they_are_acknowledged(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        ended = await executor.execute(LEAVES, **LIMIT)
    async with running(keys, tmp_path / "state") as executor:
        assert await attach(executor, ended.record.run_id) == ended
        assert await read(executor, ended.record.run_id, "deep/er/log") == b"x" * 700_000
        assert await read(executor, ended.record.run_id, "result.json") == b'{"score": 1}'
        await executor.stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[ended.record.run_id]))
        assert files_of(executor) == []
        with pytest.raises(NotFoundError):
            await read(executor, ended.record.run_id, "result.json")


async def test_an_executor_that_was_killed_while_it_collected_leaves_nothing_behind(keys, tmp_path):
    killed = tmp_path / "killed"
    async with running(keys, tmp_path / "state") as executor:
        ended = await executor.execute(LEAVES, **LIMIT)
        run_id = await begin(executor, BLOCKS)
        shutil.copytree(tmp_path / "state", killed)  # what the disk has when a SIGKILL strikes now
    (killed / "outputs" / f"{run_id}.files").write_bytes(b"half of its files")
    (killed / "outputs" / "00000000-0000-4000-8000-000000000000.1.files").write_bytes(b"of a run long forgotten")
    async with running(keys, killed) as next_start:
        assert files_of(next_start) == [f"{ended.record.run_id}.files"]
        assert await read(next_start, ended.record.run_id, "deep/er/log") == b"x" * 700_000
        assert (await attach(next_start, run_id)).record.termination.WhichOneof("kind") == "lost"


async def test_damaged_files_of_an_earlier_start_make_their_run_a_lost_one(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        run_id = (await executor.execute(LEAVES, **LIMIT)).record.run_id
    (tmp_path / "state" / "outputs" / f"{run_id}.files").write_bytes(b"short")
    async with running(keys, tmp_path / "state") as executor:
        record = (await attach(executor, run_id)).record
        assert record.termination.WhichOneof("kind") == "lost"
        assert not record.artifacts
        assert files_of(executor) == []


async def test_a_run_whose_files_find_no_room_is_the_executors_failure(keys, tmp_path):
    bounds = {"max_output_bytes": MIB, "max_kept_bytes": 3 * MIB}
    async with running(keys, tmp_path / "state", **bounds) as executor:
        first = await executor.execute({"leaves": {"big": MIB // 2}}, **LIMIT)
        assert first.record.artifacts
        record = (await executor.execute({"leaves": {"big": MIB}}, **LIMIT)).record
        assert "could not keep the program's files" in record.termination.sandbox_failed.reason
        assert not record.artifacts
        assert record.artifacts_not_collected
        assert files_of(executor) == [f"{first.record.run_id}.files"]
        await executor.stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[first.record.run_id, record.run_id]))
        assert (await executor.execute({"leaves": {"big": MIB}}, **LIMIT)).record.artifacts


async def test_kept_files_take_room_from_new_runs(keys, tmp_path):
    bounds = {"max_output_bytes": MIB, "max_kept_bytes": 3 * MIB}
    async with running(keys, tmp_path / "state", **bounds) as executor:
        ended = await executor.execute({"leaves": {"big": MIB}, "out": "more"}, **LIMIT)
        assert ended.record.artifacts[0].bytes_kept == MIB
        assert "MAX_KEPT_BYTES" in await refused(executor)
        assert await read(executor, ended.record.run_id, "big") == b"x" * MIB


async def test_files_of_a_run_that_was_killed_are_not_kept(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        run_id = await begin(executor, {**BLOCKS, **LEAVES}, **LIMIT)
        await executor.stub.Kill(ex.KillRequest(run_id=run_id))
        record = (await attach(executor, run_id)).record
        assert record.termination.HasField("killed")
        assert not record.artifacts
        assert record.artifacts_not_collected
        assert files_of(executor) == []


async def test_a_run_ends_also_when_its_files_cannot_be_removed_and_a_later_start_removes_them(
    keys, tmp_path, monkeypatch
):
    async with running(keys, tmp_path / "state") as executor:
        with monkeypatch.context() as broken:
            broken.setattr(Spool, "drop", _not_removed)
            run_id = await begin(executor, {**BLOCKS, **LEAVES}, **LIMIT)
            await executor.stub.Kill(ex.KillRequest(run_id=run_id))
            assert (await attach(executor, run_id)).record.termination.HasField("killed")
        assert files_of(executor) == [f"{run_id}.files"]
        await executor.stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[run_id]))
    async with running(keys, tmp_path / "state") as executor:
        assert files_of(executor) == []


def _not_removed(spool):
    raise OSError(errno.EIO, "cannot be removed")
