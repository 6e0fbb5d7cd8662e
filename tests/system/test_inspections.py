"""Self-tests and the attack suite through the whole stack, and what becomes of them when a part of it dies."""

import asyncio
import json
import os
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1 import executor_service_pb2_grpc as ex_grpc
from crucible.executor.v1 import inspection_service_pb2 as inspection
from crucible.executor.v1 import inspection_service_pb2_grpc as inspection_grpc
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible_client import AsyncClient, CheckStatus, SelfTestSummary, State, Verdict, VerificationSummary
from crucible_client.errors import (
    FailedPreconditionError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from crucible_client.settings import load
from crucible_deploy.chaos.counted_runsc import CountedRunsc
from crucible_deploy.paths import DEFAULT_CACHE
from crucible_rpc import signing
from crucible_rpc.channel import connect
from tests.system.local import LocalStack, python, until
from tests.system.test_executor_doors import signed, tls_of, told

SLOW = "wall-time"  # runs for seconds, whatever the machine


def left_of_suites(stack, names=()) -> list[str]:
    """Processes of this stack's attack suites, cgroups of suites of these names, and the executor's own for both."""
    own = [f"{stack.layout.cgroup}-inspect", f"{stack.layout.cgroup}-selftest", *names]
    roots = (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir())
    folders = [str(root / name) for root in roots for name in own if (root / name).exists()]
    return folders + [f"process {pid}" for pid in suites(stack)]


def suites(stack) -> dict[int, str]:
    """The names of this stack's attack suites by their processes."""
    interpreter = str(stack.layout.environment("executor")).encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if interpreter in arguments[0] and b"--name" in arguments:
                found[int(entry.name)] = arguments[arguments.index(b"--name") + 1].decode()
    return found


async def test_every_part_of_the_executor_passes_its_self_test(stack, client):
    results = [one async for one in client.self_test(engine="gvisor")]
    summary = results.pop()
    assert isinstance(summary, SelfTestSummary)
    assert [one for one in results if one.status is CheckStatus.FAILED] == []
    parts = {one.component for one in results if one.status is CheckStatus.PASSED}
    assert parts >= {"journal", "records", "tickets", "cgroups", "leftovers", "init", "images", "engine gvisor",
                     "trace", "pool gvisor"}  # fmt: skip
    assert (summary.failed, summary.passed) == (0, len(results) - summary.not_run)
    assert all(one.evidence for one in results)
    assert left_of_suites(stack) == []


async def test_a_self_test_leaves_a_running_program_alone(client):
    running = await client.submit(python("import time\nprint('up', flush=True)\ntime.sleep(4)\nprint('down')"))
    async for event in client.watch(running.name):
        if type(event).__name__ == "OutputChunk":
            break
    summary = [one async for one in client.self_test(engine="gvisor")][-1]
    assert summary.good
    done = await client.wait(running.name)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    assert done.stdout.preview == b"up\ndown\n"


def test_the_command_shows_a_table_or_json_and_names_what_it_does_not_know(stack):
    done = stack.crucible("selftest", "executor", "--engine", "gvisor", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["summary"]["failed"] == 0
    assert {"component", "name", "status", "evidence", "duration_seconds"} == set(told["checks"][0])
    assert "engine gvisor" in done.stderr
    refused = stack.crucible("selftest", "--engine", "docker")
    assert refused.returncode == 1
    assert "the engine 'docker' is not available" in refused.stderr
    assert stack.crucible("selftest", "storage").returncode == 1


async def test_attacks_over_the_api_are_judged_and_leave_nothing(stack):
    done = stack.crucible("verify", "--stack", "--json", "--only", "mount", "--only", "metadata-service")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {one["name"]: one["verdict"] for one in told["attempts"]} == {
        "mount": "CONTAINED", "metadata-service": "CONTAINED",
    }  # fmt: skip
    assert told["good"]
    assert told["summary"]["attempts_known"] > told["summary"]["contained"] == 2
    assert left_of_suites(stack) == []


async def test_only_an_administrator_may_attack_and_only_once_at_a_time(stack, client, tmp_path):
    file = tmp_path / "user" / "client.toml"
    file.parent.mkdir()
    assert stack.crucible("key", "create", "--tenant", "t", "--out", str(file)).returncode == 0
    async with AsyncClient(load(environ={"CRUCIBLE_HOME": str(file.parent)}), retry_for=timedelta(0)) as user:
        with pytest.raises(PermissionDeniedError):
            await anext(user.verify_isolation(engine="gvisor", attempts=["mount"]))
        assert [one async for one in user.self_test(engine="gvisor")][-1].good
    async with aclosing(client.verify_isolation(engine="gvisor", attempts=["mount", SLOW])) as first:
        assert (await anext(first)).verdict is Verdict.CONTAINED
        names = set(suites(stack).values())
        assert len(names) == 1
        with pytest.raises(ResourceExhaustedError) as refused:
            await anext(client.verify_isolation(engine="gvisor", attempts=["mount"]))
        assert refused.value.reason == "INSPECTION_RUNNING"
    gone = "the end of a suite whose caller left"
    await asyncio.to_thread(until, lambda: left_of_suites(stack, names) == [], 60, gone)


@pytest.mark.parametrize("process", ["worker", "executor"])
async def test_an_inspection_whose_carrier_dies_ends_without_a_verdict_and_leaves_nothing(stack, client, process):
    attempts = client.verify_isolation(engine="gvisor", attempts=["mount", SLOW])
    assert (await anext(attempts)).name == "mount"
    names = set(suites(stack).values())
    assert len(names) == 1
    killed = stack.kill(process)
    later = []
    with pytest.raises(UnavailableError) as lost:
        await take(attempts, later)
    assert not [one for one in later if isinstance(one, VerificationSummary)]
    assert lost.value.reason == "INSPECTION_LOST"
    await asyncio.to_thread(until, lambda: stack.processes().get(process) not in (None, killed))
    await asyncio.to_thread(until, lambda: left_of_suites(stack, names) == [], 60, "the end of what the suite made")
    await _verified(client)


async def take(results, into):
    async for one in results:
        into.append(one)


async def _verified(client):
    """The next one works, as soon as the stack is whole again."""
    async with asyncio.timeout(60):
        while True:
            try:
                results = [one async for one in client.verify_isolation(engine="gvisor", attempts=["mount"])]
            except (UnavailableError, ResourceExhaustedError):
                await asyncio.sleep(0.5)
                continue
            assert results[-1].good
            return


async def test_the_executor_makes_no_inspection_without_storages_ticket_and_none_twice(stack):
    async with connect(stack.layout.address("executor"), tls_of(stack, "worker"), "executor") as channel:
        own, stub = ex_grpc.ExecutorServiceStub(channel), inspection_grpc.InspectionServiceStub(channel)
        about = (await own.GetExecutor(ex.GetExecutorRequest())).executor
        good = ticket(stack, about.id, await told(own))
        events = [answer.event async for answer in stub.RunInspection(good)]
        assert pb.InspectionEvent.FromString(events[-1].payload).self_test.failed == 0
        since = await told(own)
        bad = {
            "replayed": good,
            "forged": ticket(stack, about.id, since, key=signing.generate().private_pem),
            "of another start": ticket(stack, about.id, ex.ExecutorTime(boot_id="0" * 32)),
            "of a time that nobody told": ticket(stack, about.id, ex.ExecutorTime(boot_id=about.boot_id)),
            "of a run": ticket(stack, about.id, since, context="crucible.ticket.v1"),
        }
        for what, request in bad.items():
            with pytest.raises(PermissionDeniedError) as refused:
                await anext(aiter(stub.RunInspection(request)))
            assert refused.value.reason == "INVALID_TICKET", what
    for process in ("gateway", "storage", "monitor", "executor"):
        async with connect(stack.layout.address("executor"), tls_of(stack, process), "executor") as channel:
            call = inspection_grpc.InspectionServiceStub(channel).RunInspection(ticket(stack, about.id, since))
            with pytest.raises(PermissionDeniedError):
                await anext(aiter(call))


def ticket(stack, executor, since, *, key=None, context="crucible.inspection.ticket.v1"):
    made = pb.InspectionTicket(
        inspection_id=str(uuid4()), kind=pb.INSPECTION_KIND_SELF_TEST, executor_id=executor, boot_id=since.boot_id,
        engine="gvisor", since=since,
    )  # fmt: skip
    return inspection.RunInspectionRequest(ticket=signed(stack, made, context, key))


async def test_the_stack_still_works_and_nothing_of_all_this_is_left(stack, client):
    assert (await client.run(python("print(1)"))).attempt == 1
    assert left_of_suites(stack) == []


BREAKABLE = """#!/bin/sh
case " $* " in *" run "*) if [ -e {broken} ]; then echo "the kernel is too old" >&2; exit 1; fi ;; esac
exec {runsc} "$@"
"""


@pytest.fixture
def breakable(stack):
    made = CountedRunsc.make(DEFAULT_CACHE)
    runsc = made.cache / "runsc" / "current" / "runsc"
    real = os.path.realpath(DEFAULT_CACHE / "runsc" / "current" / "runsc")
    runsc.write_text(BREAKABLE.format(broken=made.cache / "broken", runsc=real))
    local = LocalStack(made.cache, like=stack)
    try:
        local.up("--pool", "0")
        yield local
    finally:
        local.crucible("down")
        local.remove()


async def test_a_stack_whose_default_engine_broke_says_why_takes_no_work_and_serves_once_it_is_mended(breakable):
    stack, broken = breakable, breakable.layout.paths.cache / "broken"
    broken.touch()
    stack.kill("executor")
    await asyncio.to_thread(until, lambda: "the kernel is too old" in stack.crucible("status").stdout, 60, "the reason")
    shown = stack.crucible("status")
    assert shown.returncode == 1
    assert "NOT SERVING" in shown.stdout
    async with stack.client(retry_for=timedelta(0)) as client:
        with pytest.raises(FailedPreconditionError, match="the kernel is too old") as refused:
            await client.submit(python("print(1)"))
        assert refused.value.reason == "ENGINE_NOT_AVAILABLE"
        results = [one async for one in client.self_test(engine="gvisor")]
        failed = {one.component: one.evidence for one in results[:-1] if one.status is CheckStatus.FAILED}
        assert set(failed) == {"engine gvisor"}
        assert "the kernel is too old" in failed["engine gvisor"]
        broken.unlink()
        await asyncio.to_thread(until, lambda: stack.crucible("status").returncode == 0, 90, "the recovery")
        assert (await client.run(python("print(1)"))).state is State.SUCCEEDED
