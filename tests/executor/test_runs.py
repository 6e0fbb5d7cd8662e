"""The life of a run at the executor, over the wire."""

import asyncio
import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible.evaluation.v1.evaluation_pb2 import START_KIND_COLD
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import past_runs, run
from crucible_rpc.errors import (
    AlreadyExistsError,
    CallCancelledError,
    NotFoundError,
    ResourceExhaustedError,
    StartError,
)
from tests.executor.support import ScriptedEngine, collect, limits, new_run_id, running, single, told_time
from tests.executor.test_engine_breaker import until

pytestmark = pytest.mark.slow

BLOCKS = {"block": True}


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def states(executor):
    answer = await executor.stub.ListRuns(ex.ListRunsRequest())
    return {run.run_id: run.state for run in answer.runs}


async def begin(executor, script=None, **changes):
    """Starts a run, leaves its stream, and returns its id."""
    request = executor.request(script or BLOCKS, **changes)
    run_id = ex.Ticket.FromString(request.ticket.payload).run_id
    async for answer in executor.stub.Execute(request):
        assert answer.events[0].HasField("started")
        break
    return run_id


def attach(executor, run_id, stdout=0, stderr=0):
    request = ex.AttachRequest(run_id=run_id, stdout_offset=stdout, stderr_offset=stderr)
    return collect(executor.stub.Attach(request), executor.keys, stdout, stderr)


async def test_record_states_what_ran(executor):
    ended = await executor.execute({"out": "abc", "err": "de", "exit": 3}, epoch=9)
    record = ended.record
    assert (ended.stdout, ended.stderr, ended.started) == (b"abc", b"de", 1)
    assert record.termination.exited.code == 3
    assert (record.lease_epoch, record.runtime, record.engine) == (9, "python", "scripted")
    assert record.start_kind == START_KIND_COLD
    assert (record.stdout.bytes_total, record.stdout.sha256) == (3, hashlib.sha256(b"abc").digest())
    assert (record.executor_id, record.boot_id) == (executor.service.executor_id, executor.service.boot_id)
    assert record.limits.memory_bytes == 64 << 20
    times = [record.accept_time, record.start_time, record.end_time]
    assert [t.ToNanoseconds() for t in times] == sorted(t.ToNanoseconds() for t in times)
    assert executor.engine.destroyed == 1


async def test_nothing_starts_before_the_journal_has_it(keys, tmp_path):
    seen = []
    run_id = new_run_id()
    journal = tmp_path / "state/journal"
    engine = ScriptedEngine(tmp_path / "starts", lambda name: seen.append(run_id in journal.read_text()))
    synced = []
    fdatasync = os.fdatasync
    os.fdatasync = lambda fd: (synced.append(len(seen)), fdatasync(fd))
    try:
        async with running(keys, tmp_path / "state", engine) as executor:
            await executor.execute({}, run_id=run_id)
    finally:
        os.fdatasync = fdatasync
    assert seen == [True]
    assert synced[0] == 0  # the first sync came before the start


async def test_engine_that_raises_ends_in_a_signed_record(executor):
    ended = await executor.execute({"out": "x", "raise": "secret detail"})
    assert "RuntimeError" in ended.record.termination.sandbox_failed.reason
    assert "secret" not in str(ended.record)
    assert (ended.stdout, executor.engine.destroyed) == (b"x", 1)


async def test_outcome_that_cannot_be_recorded_still_ends_in_a_record(executor, monkeypatch):
    from crucible_executor import model
    from tests.executor.support import ScriptedSandbox

    async def strange(self, program, limits, sink):
        sink.started()
        return model.Outcome(model.Signalled("nine"), (), model.Usage(None, None, None, None))

    monkeypatch.setattr(ScriptedSandbox, "start", strange)
    ended = await executor.execute({})
    assert "cannot be recorded" in ended.record.termination.sandbox_failed.reason


async def test_output_that_cannot_be_kept_ends_the_run_as_our_fault(executor, monkeypatch):
    def full(fd, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    ended = await executor.execute({"out": "x" * 50_000, "times": 10, **BLOCKS})
    assert "No space left" in ended.record.termination.sandbox_failed.reason
    assert ended.record.stdout.bytes_kept == len(ended.stdout) == 100_000
    monkeypatch.undo()
    assert (await executor.execute({"out": "fine"})).stdout == b"fine"


async def test_journal_without_room_refuses_the_run_and_starts_nothing(executor, monkeypatch):
    write = os.write

    def full(fd, data):
        if b"accepted" in bytes(data):
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceExhaustedError) as caught:
        await executor.execute({"name": "never"})
    assert caught.value.reason == "STORAGE_FULL"
    monkeypatch.undo()
    assert (await executor.execute({"name": "later"})).record.termination.WhichOneof("kind") == "exited"
    assert executor.engine.started() == ["later"]


async def test_kill_and_attach_are_answered_when_the_acceptance_that_they_wait_for_finds_no_room(executor, monkeypatch):
    write, writing, kill_came = os.write, threading.Event(), threading.Event()

    def full(fd, data):
        if b"accepted" in bytes(data):
            writing.set()
            kill_came.wait(10)
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    request = executor.request({"name": "never"})
    run_id = ex.Ticket.FromString(request.ticket.payload).run_id
    executing = asyncio.ensure_future(collect(executor.stub.Execute(request), executor.keys))
    await asyncio.to_thread(writing.wait, 10)
    known = executor.service.runs.get(run_id)
    attached = asyncio.ensure_future(attach(executor, run_id))
    killing = asyncio.ensure_future(executor.stub.Kill(ex.KillRequest(run_id=run_id)))
    await until(lambda: known.kill_cause is not None and len(known._waiting) == 2)
    kill_came.set()
    assert (await asyncio.wait_for(killing, 5)).state_before == ex.RUN_STATE_RUNNING
    for stream in (executing, attached):
        with pytest.raises(ResourceExhaustedError) as caught:
            await asyncio.wait_for(stream, 5)
        assert caught.value.reason == "STORAGE_FULL"
    assert await states(executor) == {}
    monkeypatch.undo()
    with pytest.raises(AlreadyExistsError):  # who killed it was told that it is over
        await collect(executor.stub.Execute(request), executor.keys)
    assert executor.engine.started() == []


async def test_concurrent_accepts_share_fsyncs(keys, tmp_path, monkeypatch):
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (time.sleep(0.02), fdatasync(fd)))  # a slow disk
    async with running(keys, tmp_path / "state", slots=100) as executor:
        await asyncio.gather(*(executor.execute() for _ in range(100)))
        assert executor.service._journal.fsyncs < 60  # of 200 entries


async def test_output_beyond_the_limit_is_counted_not_kept(executor):
    ended = await executor.execute({"out": "x" * 1000, "times": 30}, asked=limits(output_bytes=2500))
    assert len(ended.stdout) == 2500
    assert (ended.record.stdout.bytes_total, ended.record.stdout.bytes_kept) == (30_000, 2500)
    assert ended.record.stdout.sha256 == hashlib.sha256(b"x" * 2500).digest()


async def test_last_words_travel_with_the_end(executor, monkeypatch):
    monkeypatch.setattr(run, "ENDING_SECONDS", 60)  # however slow this machine's disk is
    answers = []
    async for answer in executor.stub.Execute(executor.request({**BLOCKS, "last": "bye"})):
        answers.append([event.WhichOneof("kind") for event in answer.events])
        executor.engine.release.set()
    assert answers == [["started"], ["output", "finished"]]


async def test_small_writes_are_put_together(executor):
    chunks = 0
    async for event in single(executor.stub.Execute(executor.request({"out": "y" * 10, "times": 1000}))):
        chunks += event.HasField("output")
    assert chunks < 20


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(read=st.integers(0, 6), out=st.integers(0, 90_000), err=st.integers(0, 300), times=st.integers(1, 5))
async def test_broken_stream_resumes_without_a_byte_lost_or_doubled(keys, tmp_path_factory, read, out, err, times):
    state = tmp_path_factory.mktemp("x") / "state"
    async with running(keys, state) as executor:
        text = {"out": ("0123456789" * 9001)[:out], "err": ("abcdefg" * 50)[:err], "times": times}
        request = executor.request({**text, **BLOCKS, "last": "end"})
        got = {1: b"", 2: b""}
        count = 0
        expected = {1: text["out"].encode() * times, 2: text["err"].encode() * times}
        async for event in single(executor.stub.Execute(request)):
            if event.HasField("output"):
                chunk = event.output
                assert chunk.offset == len(got[chunk.stream])
                got[chunk.stream] += chunk.data
            count += 1
            if count > read or got == expected:
                break
        run_id = ex.Ticket.FromString(request.ticket.payload).run_id
        executor.engine.release.set()
        rest = await attach(executor, run_id, len(got[1]), len(got[2]))
        assert got[1] + rest.stdout == expected[1] + b"end"
        assert got[2] + rest.stderr == expected[2]
        assert rest.record.stdout.sha256 == hashlib.sha256(expected[1] + b"end").digest()


async def test_many_readers_see_the_same(executor):
    run_id = await begin(executor, {"out": "z" * 100_000, **BLOCKS, "last": "!"})
    readers = [asyncio.ensure_future(attach(executor, run_id)) for _ in range(5)]
    executor.engine.release.set()
    for reader in await asyncio.gather(*readers):
        assert reader.stdout == b"z" * 100_000 + b"!"


async def test_attach_to_an_unknown_run_starts_nothing(executor):
    with pytest.raises(NotFoundError) as caught:
        await attach(executor, new_run_id())
    assert caught.value.reason == "RUN_NOT_FOUND"
    assert executor.engine.created == 0


async def test_ids_killed_before_they_are_known_are_bounded_also_when_acknowledged(executor, monkeypatch):
    monkeypatch.setattr(past_runs, "MAX_REFUSED", 3)
    for _ in range(3):
        run_id = new_run_id()
        await executor.stub.Kill(ex.KillRequest(run_id=run_id))
        await executor.stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[run_id]))
    assert await states(executor) == {}
    with pytest.raises(ResourceExhaustedError):
        await executor.stub.Kill(ex.KillRequest(run_id=new_run_id()))
    await executor.stub.Kill(ex.KillRequest(run_id=run_id))  # one that is remembered needs no room


async def test_kill_answers_when_the_sandbox_is_gone(executor):
    run_id = await begin(executor)
    answer = await executor.stub.Kill(ex.KillRequest(run_id=run_id))
    assert answer.state_before == ex.RUN_STATE_RUNNING
    assert executor.engine.destroyed == 1
    record = (await attach(executor, run_id)).record
    assert record.termination.killed.cause == ex.KILL_CAUSE_REQUESTED
    assert (await executor.stub.Kill(ex.KillRequest(run_id=run_id))).state_before == ex.RUN_STATE_FINISHED


async def test_run_killed_before_it_is_known_never_starts_also_after_a_restart(keys, tmp_path):
    run_id = new_run_id()
    async with running(keys, tmp_path / "state") as executor:
        answer = await executor.stub.Kill(ex.KillRequest(run_id=run_id))
        assert answer.state_before == ex.RUN_STATE_UNSPECIFIED
        with pytest.raises(AlreadyExistsError):
            await executor.execute({"name": "never"}, run_id=run_id)
        assert await states(executor) == {run_id: ex.RUN_STATE_REFUSED}
    async with running(keys, tmp_path / "state") as executor:
        assert await states(executor) == {run_id: ex.RUN_STATE_REFUSED}
        with pytest.raises(AlreadyExistsError):
            await executor.execute({"name": "never"}, run_id=run_id)
        await executor.stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[run_id]))
        assert await states(executor) == {}
        with pytest.raises(AlreadyExistsError):
            await executor.execute({"name": "never"}, run_id=run_id)
        assert executor.engine.started() == []


async def test_no_more_runs_than_slots(keys, tmp_path):
    async with running(keys, tmp_path / "state", slots=1) as executor:
        first = await begin(executor)
        with pytest.raises(ResourceExhaustedError) as caught:
            await executor.execute()
        assert caught.value.reason == "NO_FREE_SLOT"
        assert caught.value.retry_after is not None
        await executor.stub.Kill(ex.KillRequest(run_id=first))
        assert (await executor.execute({"out": "free"})).stdout == b"free"


@pytest.mark.alone  # files that the tests before it left may be closed meanwhile
async def test_finished_runs_that_wait_to_be_acknowledged_hold_no_descriptor(executor):
    async def ended() -> ex.FinalRecord:
        return (await executor.execute({"out": "o" * 300_000, "err": "e"}, asked=limits())).record

    await ended()
    before = open_descriptors()
    records = [await ended() for _ in range(10)]
    assert open_descriptors() == before
    kept = await collect(executor.stub.Attach(ex.AttachRequest(run_id=records[0].run_id)), executor.keys)
    assert (len(kept.stdout), kept.stderr) == (300_000, b"e")


async def test_acknowledged_run_is_dropped_but_its_ticket_stays_worthless(executor):
    request = executor.request({"out": "o" * 300_000, "name": "once"}, asked=limits())
    ended = await collect(executor.stub.Execute(request), executor.keys)
    outputs = executor.service._state.outputs
    assert len(list(outputs.iterdir())) == 2
    await executor.stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[ended.record.run_id]))
    assert list(outputs.iterdir()) == []
    assert await states(executor) == {}
    with pytest.raises(AlreadyExistsError):
        await collect(executor.stub.Execute(request), executor.keys)
    assert executor.engine.started() == ["once"]


@pytest.mark.parametrize("size", [10, 500_000], ids=["in the journal", "in a file"])
async def test_finished_run_can_be_attached_after_a_restart(keys, tmp_path, size):
    async with running(keys, tmp_path / "state") as executor:
        before = await executor.execute({"out": "q" * size, "err": "e"})
    async with running(keys, tmp_path / "state") as executor:
        after = await attach(executor, before.record.run_id)
        assert after == before
        assert (await attach(executor, before.record.run_id, size - 3)).stdout == b"qqq"


async def test_damaged_kept_output_is_told_as_lost_not_passed_on(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        before = await executor.execute({"out": "q" * 500_000})
    (file,) = (tmp_path / "state/outputs").glob("*.stdout")
    file.write_bytes(b"r" * 500_000)
    async with running(keys, tmp_path / "state") as executor:
        after = await attach(executor, before.record.run_id)
    assert "damaged" in after.record.termination.lost.detail
    assert after.stdout == b""


async def test_stopping_ends_runs_and_keeps_their_records(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        run_id = await begin(executor, {"out": "partial", **BLOCKS})
    async with running(keys, tmp_path / "state") as executor:
        ended = await attach(executor, run_id)
    assert ended.record.termination.killed.cause == ex.KILL_CAUSE_SHUTDOWN
    assert ended.stdout == b"partial"


async def test_second_executor_on_the_same_state_is_refused(keys, tmp_path, executor):
    with pytest.raises(StartError, match="another executor"):
        async with running(keys, tmp_path / "state"):
            pass


async def test_executor_keeps_its_id_and_changes_its_boot_id(keys, tmp_path):
    seen = []
    for _ in range(2):
        async with running(keys, tmp_path / "state") as executor:
            seen.append((await executor.stub.GetExecutor(ex.GetExecutorRequest())).executor)
    assert seen[0].id == seen[1].id
    assert seen[0].boot_id != seen[1].boot_id
    assert [engine.name for engine in seen[0].engines] == ["scripted"]
    there = {runtime.name: not runtime.unavailable_reason for runtime in seen[0].runtimes}
    assert (there["python"], there["bash"], there["python-science"]) == (True, True, False)


CHILD = """
import asyncio, pathlib, sys
sys.path.insert(0, sys.argv[1])
from tests.executor.support import Keys, NoImages, ScriptedEngine, settings
from crucible_executor.service import ExecutorService
async def main():
    folder, state = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    keys = Keys(folder, None, None)
    service = await ExecutorService.start(
        settings(keys, state), [ScriptedEngine(state.with_name("starts"))], NoImages())
    print(service.port, service.executor_id, service.boot_id, flush=True)
    await service.run()
asyncio.run(main())
"""


async def test_killed_executor_starts_nothing_twice_and_signs_what_it_lost(keys, tmp_path):
    from pathlib import Path
    from types import SimpleNamespace

    from crucible.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
    from crucible_rpc.channel import connect
    from tests.executor.support import RunningExecutor

    root = str(Path(__file__).parents[2])
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, root, str(keys.folder), str(tmp_path / "state"), stdout=asyncio.subprocess.PIPE
    )
    port, executor_id, boot_id = (await asyncio.wait_for(child.stdout.readline(), 20)).decode().split()
    service = SimpleNamespace(executor_id=executor_id, boot_id=boot_id)
    async with connect(f"127.0.0.1:{port}", keys.tls("worker"), "executor") as channel:
        stub = ExecutorServiceStub(channel)
        told = await told_time(stub)
        lost = RunningExecutor(keys, service, None, stub, lambda: told)
        done = await lost.execute({"out": "kept", "name": "done"})
        request = lost.request({"out": "x", "name": "lost", **BLOCKS})
        stream = lost.stub.Execute(request)
        async for _ in stream:
            break
        child.send_signal(signal.SIGKILL)
        await child.wait()
    run_id = ex.Ticket.FromString(request.ticket.payload).run_id
    async with running(keys, tmp_path / "state", ScriptedEngine(tmp_path / "starts")) as executor:
        assert executor.engine.swept == 1
        record = (await attach(executor, run_id)).record
        assert record.termination.WhichOneof("kind") == "lost"
        assert record.boot_id == boot_id
        assert (await attach(executor, done.record.run_id)) == done
        with pytest.raises(AlreadyExistsError):
            await collect(executor.stub.Execute(request), keys)
        assert executor.engine.started() == ["done", "lost"]


async def test_reader_that_leaves_ends_only_its_stream(executor):
    run_id = await begin(executor)
    reader = executor.stub.Attach(ex.AttachRequest(run_id=run_id))
    task = asyncio.ensure_future(collect(reader, executor.keys))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises((CallCancelledError, asyncio.CancelledError)):
        await task
    assert (await states(executor)) == {run_id: ex.RUN_STATE_RUNNING}


async def test_no_record_says_that_a_run_is_over_before_its_sandbox_is_gone(executor):
    run_id = new_run_id()
    stream = executor.stub.Execute(executor.request({"block": True}, run_id=run_id))
    assert (await anext(aiter(stream))).events[0].HasField("started")
    executor.engine.unkillable = True
    killing = asyncio.ensure_future(executor.stub.Kill(ex.KillRequest(run_id=run_id)))
    done, _ = await asyncio.wait([killing], timeout=0.5)
    assert not done
    assert await states(executor) == {run_id: ex.RUN_STATE_RUNNING}
    executor.engine.unkillable = False
    await asyncio.wait_for(killing, 10)
    collected = await collect(executor.stub.Attach(ex.AttachRequest(run_id=run_id)), executor.keys)
    assert "RuntimeError" in collected.record.termination.sandbox_failed.reason


async def test_as_many_removals_as_there_are_slots_go_on_beside_runs_and_more_hold_them_back(executor):
    executor.engine.undestroyable = True
    ended = [await collect(executor.stub.Execute(executor.request({"out": "x"})), executor.keys) for _ in range(4)]
    assert {one.stdout for one in ended} == {b"x"}
    waits = new_run_id()
    stream = executor.stub.Execute(executor.request({"out": "y"}, run_id=waits))
    assert (await anext(aiter(stream))).events[0].HasField("started")
    assert (await states(executor))[waits] == ex.RUN_STATE_RUNNING
    executor.engine.undestroyable = False
    last = await collect(executor.stub.Attach(ex.AttachRequest(run_id=waits)), executor.keys)
    assert (last.stdout, executor.engine.destroyed >= 1) == (b"y", True)


async def test_run_whose_sandbox_is_never_gone_is_lost_with_its_executor(keys, tmp_path):
    run_id = new_run_id()
    async with running(keys, tmp_path / "state") as executor:
        executor.engine.unkillable = True
        stream = aiter(executor.stub.Execute(executor.request({"block": True}, run_id=run_id)))
        assert (await anext(stream)).events[0].HasField("started")
        executor.engine.release.set()
    async with running(keys, tmp_path / "state") as executor:
        collected = await collect(executor.stub.Attach(ex.AttachRequest(run_id=run_id)), keys)
    assert collected.record.termination.HasField("lost")
