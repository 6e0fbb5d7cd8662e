"""Self-tests and attacks as people and programs ask for them."""

import json

import pytest

from crucible.evaluation.v1 import evaluation_pb2
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible_client import AttemptResult, CheckResult, CheckStatus, Client, SelfTestSummary, Verdict, errors
from crucible_client.results import Isolation


@pytest.fixture
def found(gateway):
    check = pb.CheckResult(component="journal", name="fsync", status=pb.CHECK_STATUS_PASSED, evidence="1 ms\x1b[31m")
    check.duration.FromMilliseconds(1500)
    failed = pb.CheckResult(component="engine gvisor", name="memory", status=pb.CHECK_STATUS_FAILED, evidence="2 MiB")
    gateway.checks = [check, failed]
    gateway.self_test = pb.SelfTestSummary(executor="x1", passed=1, failed=1)
    gateway.attempts = [pb.AttemptResult(name="mount", family="FILES", verdict=pb.VERDICT_VULNERABLE, promised=True)]
    gateway.verification = pb.VerificationSummary(
        executor="x1", engine="gvisor", vulnerable=1, short_of_promise=1, attempts_known=94,
        isolation=evaluation_pb2.ISOLATION_USER_KERNEL,
    )  # fmt: skip
    return gateway


async def test_results_come_as_plain_values_and_the_summary_last(client, found):
    results = [one async for one in client.self_test(engine="gvisor")]
    assert [type(one) for one in results] == [CheckResult, CheckResult, SelfTestSummary]
    assert results[0].status is CheckStatus.PASSED
    assert results[0].duration.total_seconds() == 1.5
    assert not results[-1].good
    assert found.asked == [("self_test", "gvisor", [])]
    attempt, summary = [one async for one in client.verify_isolation(engine="gvisor", attempts=["mount"])]
    assert isinstance(attempt, AttemptResult)
    assert (attempt.verdict, attempt.short_of_promise) == (Verdict.VULNERABLE, True)
    assert (summary.isolation, summary.good, summary.attempts_known) == (Isolation.USER_KERNEL, False, 94)
    assert found.asked[1:] == [("verify", "gvisor", ["mount"])]


async def test_the_blocking_client_does_the_same(config, found):
    import asyncio

    def both():
        with Client(config) as client:
            return [*client.self_test()], [*client.verify_isolation(engine="gvisor")]

    checks, attempts = await asyncio.to_thread(both)
    assert (checks[-1].executor, attempts[-1].engine) == ("x1", "gvisor")


async def test_a_stream_without_its_summary_is_an_error_and_never_a_result(client, found):
    found.self_test = found.verification = None
    for stream in (client.self_test(), client.verify_isolation()):
        with pytest.raises(errors.UnavailableError) as error:
            _ = [one async for one in stream]
        assert error.value.reason == "STREAM_ENDED"


async def test_an_inspection_is_never_asked_for_twice(client, found):
    found.faults["RunSelfTest"] = [errors.UnavailableError("INSPECTION_LOST", "its worker was lost")]
    with pytest.raises(errors.UnavailableError, match="its worker was lost"):
        _ = [one async for one in client.self_test()]
    assert found.calls["RunSelfTest"] == 1
    found.faults["VerifyIsolation"] = [errors.UnavailableError("INSPECTION_LOST", "its worker was lost")]
    with pytest.raises(errors.UnavailableError, match="its worker was lost"):
        _ = [one async for one in client.verify_isolation()]
    assert found.calls["VerifyIsolation"] == 1


async def test_command_shows_every_check_and_fails_when_one_does(crucible, found):
    done = await crucible("selftest", "executor", "--engine", "gvisor")
    assert done.code == 1
    assert done.lines[0].split("\t") == ["PASSED", "journal", "fsync", "1.50", "1 ms\\x1b[31m"]
    assert done.lines[-1] == "executor x1: 1 passed, 1 failed, 0 not run; 0.0 s"
    assert b"[2] engine gvisor: memory: FAILED" in done.err
    assert b"\x1b" not in done.out + done.err
    found.checks, found.self_test = found.checks[:1], pb.SelfTestSummary(executor="x1", passed=1)
    assert (await crucible("selftest")).code == 0


async def test_command_prints_json(crucible, found):
    done = await crucible("selftest", "--json")
    told = json.loads(done.out)
    assert told["summary"]["failed"] == 1
    assert [one["status"] for one in told["checks"]] == ["PASSED", "FAILED"]


async def test_command_says_why_it_cannot(crucible, found):
    found.faults["RunSelfTest"] = [errors.FailedPreconditionError("ENGINE_NOT_AVAILABLE", "no live executor has it")]
    done = await crucible("selftest", "--engine", "wasm")
    assert (done.code, done.out) == (1, b"")
    assert done.err == b"crucible: no live executor has it\n"


async def test_verify_asks_the_running_stack(crucible, found):
    done = await crucible("verify", "--stack", "--engine", "gvisor", "--only", "mount", "--json")
    told = json.loads(done.out)
    assert done.code == 1
    assert (told["good"], told["attempts"][0]["verdict"]) == (False, "VULNERABLE")
    shown = await crucible("verify", "--stack")
    assert shown.lines[1].startswith("! VULNERABLE mount")
    assert "1 of 94 attempts" in shown.lines[-1]
    assert (await crucible("verify", "--stack", "--controls")).code == 2
