"""`crucible run` behaves as the program it runs."""

import asyncio
import json
import os
import signal

import pytest
from click.testing import CliRunner

from crucible_client.cli.app import app
from crucible_rpc import errors
from tests.client.gateway_servicer import script

pytestmark = pytest.mark.slow

OUT, ERR = 1, 2


@pytest.fixture
def program(tmp_path):
    def write(**plan) -> str:
        path = tmp_path / "program.py"
        path.write_text(script(**plan))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ({"exited": {"code": 0}}, 0, ""),
        ({"exited": {"code": 7}}, 7, ""),
        ({"signalled": {"signal": 11}}, 139, "signal 11 (SIGSEGV)"),
        ({"limitExceeded": {"limit": "LIMIT_WALL_TIME"}}, 124, "WALL_TIME: 30.0 s were up"),
        ({"limitExceeded": {"limit": "LIMIT_CPU_TIME"}}, 124, "CPU_TIME"),
        ({"limitExceeded": {"limit": "LIMIT_MEMORY"}}, 137, "MEMORY"),
        ({"limitExceeded": {"limit": "LIMIT_OUTPUT"}}, 137, "OUTPUT"),
        ({"cancelled": {"reason": "an operator", "confirmed": True}}, 130, "cancelled (an operator)"),
        ({"cancelled": {"confirmed": False}}, 130, "not confirmed"),
        ({"infrastructureFailure": {"reason": "the executor was lost"}}, 125, "the executor was lost"),
    ],
)
async def test_exit_code_tells_how_the_program_ended(crucible, program, end, code, words):
    evidence = {"source": "EVIDENCE_SOURCE_EXECUTOR_CLOCK", "detail": "30.0 s were up"}
    ran = await crucible("run", program(out=[(OUT, b"hello\n")], end=end | {"evidence": evidence}))
    assert (ran.code, ran.out) == (code, b"hello\n")
    assert words in ran.err.decode()
    assert len(ran.err.splitlines()) == bool(words)


async def test_output_passes_through_byte_for_byte(crucible, program):
    every = bytes(range(256)) * 300
    ran = await crucible("run", program(out=[(OUT, every), (ERR, b"\xff\x00e"), (OUT, b"no newline")]))
    assert (ran.out, ran.err) == (every + b"no newline", b"\xff\x00e")


async def test_output_comes_while_the_program_runs(crucible, program):
    child = await crucible.start("run", program(out=[(OUT, b"now")], hang=True))
    assert await asyncio.wait_for(child.stdout.readexactly(3), 20) == b"now"
    child.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(child.wait(), 20) == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_cancels_and_waits_until_it_is_gone(crucible, program, gateway, number):
    gateway.confirm_cancel.clear()
    child = await crucible.start("run", program(out=[(OUT, b"x")], hang=True))
    await asyncio.wait_for(child.stdout.readexactly(1), 20)
    child.send_signal(number)
    await asyncio.wait_for(gateway.arrived["CancelEvaluation"].wait(), 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.wait(), 0.3)
    gateway.confirm_cancel.set()
    _, err = await asyncio.wait_for(child.communicate(), 20)
    assert (child.returncode, len(err.splitlines())) == (130, 1)
    assert b"cancelled" in err
    assert all(record.terminal for record in gateway.records.values())


async def test_second_ctrl_c_leaves_at_once(crucible, program, gateway):
    gateway.confirm_cancel.clear()
    child = await crucible.start("run", program(out=[(OUT, b"x")], hang=True))
    await asyncio.wait_for(child.stdout.readexactly(1), 20)
    child.send_signal(signal.SIGINT)
    await asyncio.wait_for(gateway.arrived["CancelEvaluation"].wait(), 10)
    child.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(child.communicate(), 5)
    assert (child.returncode, len(err.splitlines())) == (130, 1)


async def test_ctrl_c_works_while_nobody_reads_the_output(crucible, program, gateway):
    # More than a pipe holds: the command is blocked in its write when the signal comes.
    reader, writer = os.pipe()
    child = await crucible.start("run", program(out=[(OUT, bytes(65536))] * 4, hang=True), stdout=writer)
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 1) == b"\0"
    child.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(child.wait(), 10) == 130
    os.close(reader)
    assert gateway.calls["CancelEvaluation"] == 1


async def test_reader_that_leaves_ends_the_program(crucible, program, gateway):
    reader, writer = os.pipe()
    child = await crucible.start("run", program(out=[(OUT, b"x")] * 4, hang=True), stdout=writer)
    os.close(writer)
    os.close(reader)
    assert await asyncio.wait_for(child.wait(), 20) == 141
    assert gateway.calls["CancelEvaluation"] == 1


async def test_json_gives_the_record_instead_of_the_output(crucible, program):
    ran = await crucible(
        "run", "--json", program(out=[(OUT, b"caf\xc3\xa9"), (ERR, b"\xff")], end={"exited": {"code": 3}})
    )
    record = json.loads(ran.out)
    assert (ran.code, ran.err) == (3, b"")
    assert record["termination"] == {"kind": "EXITED", "code": 3, "evidence": None}
    assert (record["state"], record["stdout"]["preview"]) == ("FAILED", "café")
    assert record["stderr"]["preview_base64"] == "/w=="
    assert record["usage"]["wall_time_seconds"] == 0.012
    assert record["spec"]["program"]["runtime"] == "python"


async def test_cut_output_and_refused_limits_are_told(crucible, program):
    ran = await crucible("run", program(out=[(OUT, b"kept")], dropped=2048))
    assert (ran.code, ran.out) == (0, b"kept")
    assert ran.err == b"crucible: stdout was cut: 4 B of 2.0 KiB were kept\n"


async def test_lost_attempt_is_told_and_the_next_ones_output_is_whole(crucible, program):
    ran = await crucible("run", program(out=[(OUT, b"second")], lost_attempt="the executor was lost"))
    assert (ran.code, ran.out) == (0, b"first second")
    assert [b"attempt 1 was lost" in ran.err, b"attempt 2 starts from the beginning" in ran.err] == [True, True]


@pytest.mark.parametrize("how", ["unavailable", "fell_behind", "end"])
async def test_output_is_exact_when_the_stream_breaks_again_and_again(crucible, program, gateway, how):
    gateway.watch_limit, gateway.break_watch = 3, how
    pieces = [(OUT, bytes([65 + n]) * 10) for n in range(12)]
    ran = await crucible("run", program(out=pieces))
    assert (ran.code, ran.out, ran.err) == (0, b"".join(data for _, data in pieces), b"")
    assert gateway.calls["WatchEvaluation"] >= 4


async def test_options_become_the_spec(crucible, program, gateway, tmp_path):
    (tmp_path / "data.txt").write_text("beside")
    path = program()
    options = (
        "--engine gvisor --wall-time 5s --cpu-time 1500ms --cpus 0.5 --memory 128MiB --processes 7 --output-bytes 2KiB"
    )
    more = ["--disk", "1MiB", "--priority", "-3", "--label", "team=a", "--env", "A=b=c", "--stdin", "-"]
    extra = ["--file", f"lib/data.txt={tmp_path / 'data.txt'}"]
    ran = await crucible("run", *options.split(), *more, *extra, path, "--", "--flag", "x y", stdin=b"typed")
    assert ran.code == 0, ran.err
    spec = next(iter(gateway.records.values())).evaluation.spec
    assert [(file.path, file.content) for file in spec.program.files][1:] == [("lib/data.txt", b"beside")]
    assert (spec.program.entrypoint, list(spec.program.args)) == ("program.py", ["--flag", "x y"])
    assert (dict(spec.program.env), spec.program.stdin, dict(spec.labels)) == ({"A": "b=c"}, b"typed", {"team": "a"})
    limits = spec.limits
    assert (limits.wall_time.seconds, limits.cpu_time.ToMilliseconds(), limits.cpus) == (5, 1500, 0.5)
    assert (limits.memory_bytes, limits.processes, limits.output_bytes) == (128 << 20, 7, 2048)
    assert (limits.disk_bytes, spec.priority, spec.engine) == (1 << 20, -3, "gvisor")


async def test_program_comes_from_standard_input(crucible):
    ran = await crucible("run", "-", stdin=b"print(6 * 7)")
    assert (ran.code, ran.out) == (0, b"42\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "no-such-file.py"], "cannot read no-such-file.py"),
        (["run", "README.txt", "--runtime", "python"], "cannot read README.txt"),
        (["run", "-", "--stdin", "-"], "one standard input"),
        (["run", "-", "--memory", "lots"], "512MiB"),
        (["run", "-", "--wall-time", "30"], "with its unit"),
        (["run", "-", "--file", "nope"], "NAME=VALUE"),
    ],
)
def test_wrong_usage_exits_with_2(args, words):
    # Before any server is looked for: there is none here.
    ran = CliRunner(env={"CRUCIBLE_HOME": "/nonexistent"}).invoke(app, args)
    assert ran.exit_code == 2
    assert words in ran.stderr


async def test_refusal_names_the_field_and_exits_with_2(crucible, program, gateway):
    violation = errors.FieldViolation("spec.limits.wall_time", "at most 1 h")
    gateway.faults["CreateEvaluation"] = [errors.InvalidArgumentError("INVALID_FIELD", "wrong", [violation])]
    ran = await crucible("run", program())
    assert (ran.code, ran.err) == (2, b"crucible: spec.limits.wall_time: at most 1 h\n")


async def test_unknown_engine_exits_with_125(crucible, program, gateway):
    message = "no executor has the engine 'nope'"
    gateway.faults["CreateEvaluation"] = [errors.FailedPreconditionError("ENGINE_NOT_AVAILABLE", message)]
    ran = await crucible("run", "--engine", "nope", program())
    assert (ran.code, ran.err.decode()) == (125, f"crucible: {message}\n")
