"""`crucible bench humaneval` against a server that really runs the samples (here, without a sandbox)."""

import asyncio
import ctypes
import json
import platform
import signal
from pathlib import Path

import pytest

from crucible.evaluation.v1 import evaluation_pb2
from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible_client.suites import humaneval
from crucible_client.suites.grading import Grade
from crucible_client.suites.results_file import ResultsFile, ResultsFileError
from crucible_rpc import errors
from tests.client.gateway_servicer import Gateway, serve

pytestmark = pytest.mark.slow

TGKILL = {"x86_64": 234, "aarch64": 131}[platform.machine()]
HANGS = "    import time\n    time.sleep(1000)\n"


def write(path, completions: list[tuple[str, str]]) -> str:
    lines = (json.dumps({"task_id": task, "completion": completion}) for task, completion in completions)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def right(task: str) -> tuple[str, str]:
    return task, humaneval.problems()[task].canonical_solution


@pytest.fixture
def samples(tmp_path) -> str:
    """Two problems with two samples each: 2 of 2 and 1 of 2 pass."""
    wrong = humaneval.wrong_samples()[0].completion
    tasks = ("HumanEval/0", "HumanEval/1")
    return write(tmp_path / "samples.jsonl", [*map(right, tasks), right(tasks[0]), (tasks[1], wrong)])


async def bench(crucible, samples, *more) -> dict:
    ran = await crucible("bench", "humaneval", "--samples", samples, "-k", "1,2,10", "--json", *more)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


async def test_counts_pass_at_k_and_times(crucible, samples):
    summary = await bench(crucible, samples)
    assert (summary["problems"], summary["samples"], summary["passed"], summary["failed"]) == (2, 4, 3, 1)
    assert summary["pass_at"] == {"1": 0.75, "2": 1.0, "10": None}
    assert summary["ended"] == {"EXITED 0": 3, "EXITED 1": 1}
    assert (summary["undecided"], summary["ran"]) == (0, 4)
    assert 0 < summary["p50_seconds"] <= summary["p95_seconds"]


async def test_second_run_runs_nothing_again(crucible, samples, gateway):
    first = await bench(crucible, samples)
    again = await bench(crucible, samples)
    assert len(gateway.records) == 4
    assert (again["ran"], again["passed"], again["pass_at"]) == (0, first["passed"], first["pass_at"])
    await bench(crucible, samples, "--wall-time", "9s")
    assert len(gateway.records) == 8  # another limit is another question


async def kept_lines(path, count: int) -> None:
    """Until so many grades are in the file: the command says nothing at each that could be waited for."""
    async with asyncio.timeout(30):
        while not path.exists() or path.read_bytes().count(b"\n") < count:  # noqa: ASYNC110  # a file has no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
async def test_run_that_was_stopped_goes_on_where_it_was(crucible, tmp_path, gateway, number, code):
    tasks = [f"HumanEval/{n}" for n in range(6)]
    samples = write(tmp_path / "samples.jsonl", [*map(right, tasks[:4]), (tasks[4], HANGS), (tasks[5], HANGS)])
    child = await crucible.start("bench", "humaneval", "--samples", samples, "--concurrency", "2")
    await kept_lines(tmp_path / "samples.jsonl.results.jsonl", 4)
    child.send_signal(number)
    _, err = await asyncio.wait_for(child.communicate(), 20)
    assert child.returncode == code
    if number == signal.SIGINT:
        assert b"4 of 6 grades are in" in err
        assert gateway.calls["CancelEvaluation"] == 2
    write(tmp_path / "samples.jsonl", [right(task) for task in tasks])
    summary = await bench(crucible, samples)
    assert (summary["ran"], summary["passed"]) == (2, 6)


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_program_that_hangs_ends_with_the_gateway_of_these_tests(tls, tmp_path):
    told = tmp_path / "pids"
    code = f"import os, time\nos.fork()\nopen({str(told)!r}, 'a').write(f'{{os.getpid()}}\\n')\ntime.sleep(1000)"
    program = evaluation_pb2.Program(files=[evaluation_pb2.File(path="main.py", content=code.encode())])
    gateway = Gateway()
    async with serve(gateway, tls.server.credentials):
        gateway.create(api.CreateEvaluationRequest(spec=evaluation_pb2.EvaluationSpec(program=program)))
        await kept_lines(told, 2)
    async with asyncio.timeout(10):  # init of the machine reaps the second
        while any(map(alive, told.read_text().split())):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def another_thread(pid: int) -> int:
    """A thread of the process that is not its main one: gRPC has several."""
    threads = (int(folder.name) for folder in Path(f"/proc/{pid}/task").iterdir())
    return next(thread for thread in threads if thread != pid)


async def test_interrupt_that_does_not_wake_the_main_thread_stops_the_run_at_once(crucible, tmp_path, gateway):
    """As one that comes just before the event loop begins to wait; here another thread takes it."""
    samples = write(tmp_path / "samples.jsonl", [("HumanEval/0", HANGS)])
    child = await crucible.start("bench", "humaneval", "--samples", samples)
    await gateway.arrived["RunEvaluation"].wait()
    await gateway.crowd[1].wait()
    await asyncio.sleep(0.3)  # from here on nothing happens in the command by itself
    assert (
        ctypes.CDLL(None, use_errno=True).syscall(TGKILL, child.pid, another_thread(child.pid), int(signal.SIGINT)) == 0
    )
    _, err = await asyncio.wait_for(child.communicate(), 20)
    assert child.returncode == 130, err
    assert gateway.calls["CancelEvaluation"] == 1


async def test_infrastructure_failure_is_no_grade_and_is_run_again(crucible, samples, gateway):
    gateway.faults["RunEvaluation"] = [errors.FailedPreconditionError("ENGINE_NOT_AVAILABLE", "no engine now")]
    ran = await crucible("bench", "humaneval", "--samples", samples)
    assert (ran.code, b"no engine now" in ran.err) == (1, True)
    assert "without a grade\t1" in ran.lines
    assert (await bench(crucible, samples))["ran"] == 1


async def test_plain_lines_in_a_pipe(crucible, samples):
    ran = await crucible("bench", "humaneval", "--samples", samples, "-k", "1")
    assert "pass@1\t0.7500" in ran.lines
    assert ran.err.splitlines()[-1] == b"4 of 4"


async def test_built_in_sets_have_names(crucible, tmp_path, gateway):
    kept = tmp_path / "kept.jsonl"
    args = ("bench", "humaneval", "--samples", "@early-exit", "--json", "--results", str(kept), "--concurrency", "8")
    ran = await crucible(*args)
    summary = json.loads(ran.out)
    assert (summary["samples"], summary["passed"], summary["ended"]) == (164, 0, {"EXITED 0": 164})


@pytest.mark.parametrize("value", ["0", "1,", "x", "-1", "1.5"])
async def test_wrong_k_is_refused(crucible, samples, value):
    assert (await crucible("bench", "humaneval", "--samples", samples, "-k", value)).code == 2


def grade(index: int, *, passed: bool | None = True) -> Grade:
    return Grade(index, "HumanEval/0", "d", passed, "EXITED 0", "", "evaluations/x", 0.5)


def test_line_that_was_cut_off_is_removed(tmp_path):
    path = tmp_path / "r.jsonl"
    with ResultsFile(path) as file:
        file.add(grade(0))
    path.write_bytes(path.read_bytes() + b'{"index": 1, "ta')
    with ResultsFile(path) as file:
        assert list(file.grades) == [(0, "d")]
        file.add(grade(2))
        file.add(grade(3, passed=None))
    with ResultsFile(path) as file:
        assert list(file.grades) == [(0, "d"), (2, "d")]


def test_two_runs_never_share_a_file(tmp_path):
    with ResultsFile(tmp_path / "r.jsonl"), pytest.raises(ResultsFileError, match="in use"):
        ResultsFile(tmp_path / "r.jsonl")


@pytest.mark.parametrize("content", [b"hello\n", b"[]\n", b'{"index": 1}\n', b"\xff\n"])
def test_foreign_file_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(ResultsFileError, match="line 1"):
        ResultsFile(path)
    assert path.read_bytes() == content
