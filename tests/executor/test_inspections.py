"""Inspections of the executor over a real server: who gets one, how often, and what is left when its caller goes."""

from __future__ import annotations

import asyncio
import sys
import uuid
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import inspection_service_pb2 as api
from crucible.executor.v1.inspection_service_pb2_grpc import InspectionServiceStub
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible_executor import cgroups
from crucible_executor.attack_suite import ChildSuite
from crucible_executor.catalog import Catalog, OfferedEngine
from crucible_executor.executor_clock import ExecutorClock
from crucible_executor.inspection_tickets import CONTEXT, InspectionTicketCheck
from crucible_executor.inspections import CONTEXT as EVENTS
from crucible_executor.inspections import Inspections, SuiteFailedError
from crucible_executor.settings import Settings
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_rpc import signing
from crucible_rpc.channel import connect
from crucible_rpc.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.executor.support import ScriptedEngine

SELF_TEST, VERIFY = pb.INSPECTION_KIND_SELF_TEST, pb.INSPECTION_KIND_VERIFY_ISOLATION


def signed(signer: signing.Signer, message, context: str = CONTEXT) -> SignedBytes:
    payload = message.SerializeToString()
    signature = signer.sign(context, payload)
    return SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature)


def ticket(executor_id: str, boot_id: str, *, kind=SELF_TEST, **fields) -> pb.InspectionTicket:
    values = {"inspection_id": str(uuid.uuid4()), **fields}
    return pb.InspectionTicket(kind=kind, executor_id=executor_id, boot_id=boot_id, **values)


@asynccontextmanager
async def inspector(executor, process: str = "worker"):
    async with connect(f"127.0.0.1:{executor.service.port}", executor.keys.tls(process), "executor") as channel:
        yield InspectionServiceStub(channel)


def request(executor, *, signer=None, context=CONTEXT, **fields) -> api.RunInspectionRequest:
    names = {"executor_id": executor.service.executor_id, "boot_id": executor.service.boot_id}
    names["since"] = executor.tell()
    made = ticket(**{**names, **fields})
    return api.RunInspectionRequest(ticket=signed(signer or executor.keys.tickets, made, context))


def opened(executor, event: SignedBytes) -> pb.InspectionEvent:
    executor.keys.records.verify(EVENTS, event.payload, event.key_id, event.signature)
    return pb.InspectionEvent.FromString(event.payload)


async def test_a_self_test_streams_signed_results_in_order_and_ends_with_its_summary(executor):
    made = request(executor, engine="scripted")
    async with inspector(executor) as stub:
        events = [opened(executor, answer.event) async for answer in stub.RunInspection(made)]
    asked = pb.InspectionTicket.FromString(made.ticket.payload)
    assert {one.inspection_id for one in events} == {asked.inspection_id}
    assert {(one.executor_id, one.boot_id) for one in events} == {
        (executor.service.executor_id, executor.service.boot_id)
    }
    assert [one.sequence for one in events] == list(range(1, len(events) + 1))
    checks = {(one.check.component, one.check.name): one.check.status for one in events[:-1]}
    assert checks["engine scripted", "it works"] == pb.CHECK_STATUS_PASSED
    assert {component for component, _ in checks} >= {"journal", "records", "tickets", "cgroups", "init", "images"}
    assert events[-1].self_test.passed == list(checks.values()).count(pb.CHECK_STATUS_PASSED)


async def test_a_check_that_fails_is_told_with_what_was_measured(executor):
    executor.engine.broken = "1 of 2"
    async with inspector(executor) as stub:
        events = [opened(executor, one.event) async for one in stub.RunInspection(request(executor))]
    (failed,) = [one.check for one in events if one.check.component == "engine scripted"]
    assert (failed.status, failed.evidence) == (pb.CHECK_STATUS_FAILED, "1 of 2")
    assert events[-1].self_test.failed >= 1


@pytest.mark.parametrize("process", ["gateway", "storage", "executor"])
async def test_nobody_but_the_worker_may_ask(executor, process):
    async with inspector(executor, process) as stub:
        with pytest.raises(PermissionDeniedError) as refused:
            await anext(aiter(stub.RunInspection(request(executor))))
    assert refused.value.reason == "PEER_NOT_PERMITTED"


async def test_only_a_fresh_ticket_of_storage_for_this_start_is_taken_and_only_once(executor):
    old = executor.tell()
    executor.uptime.ahead += 15.1
    good = request(executor)
    bad = {
        "none": api.RunInspectionRequest(),
        "forged": request(executor, signer=signing.Signer(signing.generate().private_pem)),
        "expired": request(executor, since=old),
        "resting on a time that nobody told": request(executor, since=ExecutorClock(executor.service.boot_id).tell()),
        "for another executor": request(executor, executor_id="x-other"),
        "for another start": request(executor, boot_id="0" * 32),
        "of a run": request(executor, context="crucible.ticket.v1"),
        "without a kind": request(executor, kind=0),
        "with a path as engine": request(executor, engine="../../bin/sh"),
        "with an option as attempt": request(executor, kind=VERIFY, engine="gvisor", attempts=["--markdown=/etc/x"]),
        "replayed": good,
    }
    async with inspector(executor) as stub:
        assert [one async for one in stub.RunInspection(good)]
        for what, one in bad.items():
            with pytest.raises(PermissionDeniedError) as refused:
                await anext(aiter(stub.RunInspection(one)))
            assert refused.value.reason == "INVALID_TICKET", what


async def test_an_engine_or_attempt_that_is_not_there_is_refused_by_name(executor):
    async with inspector(executor) as stub:
        for kind in (SELF_TEST, VERIFY):
            with pytest.raises(FailedPreconditionError, match="no engine 'gvisor'"):
                await anext(aiter(stub.RunInspection(request(executor, kind=kind, engine="gvisor"))))
        made = request(executor, kind=VERIFY, engine="scripted", attempts=["no-such"])
        with pytest.raises(InvalidArgumentError, match="no-such"):
            await anext(aiter(stub.RunInspection(made)))


class Suite:
    """An attack suite that says what it is told, and how it was ended."""

    def __init__(self, *, fails: str = "") -> None:
        self.fails = fails
        self.more = asyncio.Event()
        self.removed = asyncio.Event()
        self.asked: list[tuple[str, list[str]]] = []

    async def run(self, engine: str, attempts: list[str]):
        self.asked.append((engine, attempts))
        try:
            yield pb.AttemptResult(name="one", verdict=pb.VERDICT_CONTAINED)
            if self.fails:
                raise SuiteFailedError(self.fails)
            await self.more.wait()
            yield pb.VerificationSummary(contained=1)
        finally:
            await asyncio.sleep(0)  # removing things takes turns of the loop
            self.removed.set()


KEY = signing.Signer(signing.generate().private_pem)
CLOCK = ExecutorClock("b-1")


def inspections(suite, tmp_path: Path, **options) -> Inspections:
    catalog = Catalog([OfferedEngine(ScriptedEngine(tmp_path / "starts"), "")], [], "scripted")
    return Inspections(
        tickets=InspectionTicketCheck(KEY.verifier(), "x-1", "b-1", timedelta(seconds=15), CLOCK),
        catalog=catalog, parts=None, suite=suite, signer=KEY, executor_id="x-1", boot_id="b-1", **options,
    )  # fmt: skip


def leave(**fields) -> SignedBytes:
    return signed(KEY, ticket("x-1", "b-1", kind=VERIFY, since=CLOCK.tell(), **{"engine": "scripted", **fields}))


def found(event: SignedBytes) -> pb.InspectionEvent:
    return pb.InspectionEvent.FromString(event.payload)


async def test_the_suite_is_told_engine_and_attempts_and_nothing_else(tmp_path):
    suite = Suite()
    suite.more.set()
    events = [found(one) async for one in inspections(suite, tmp_path).run(leave(attempts=["mount"]))]
    assert suite.asked == [("scripted", ["mount"])]
    assert [one.WhichOneof("kind") for one in events] == ["attempt", "verification"]


async def test_one_at_a_time_and_the_next_one_when_it_has_ended(tmp_path):
    suite = Suite()
    own = inspections(suite, tmp_path)
    first = own.run(leave())
    await anext(first)
    with pytest.raises(ResourceExhaustedError) as refused:
        await anext(own.run(leave()))
    assert refused.value.reason == "INSPECTION_RUNNING"
    suite.more.set()
    assert [found(one).WhichOneof("kind") async for one in first] == ["verification"]
    assert len([one async for one in own.run(leave())]) == 2


async def test_a_caller_who_leaves_ends_it_and_all_is_removed_before_another_may_begin(tmp_path):
    suite = Suite()
    own = inspections(suite, tmp_path)
    begun = asyncio.Event()

    async def call() -> None:
        async for _ in own.run(leave()):
            begun.set()

    caller = asyncio.create_task(call())
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert suite.removed.is_set()
    assert found(await anext(own.run(leave()))).attempt.name == "one"


async def test_what_takes_too_long_is_ended_and_has_no_summary(tmp_path):
    suite = Suite()
    events = [
        found(one) async for one in inspections(suite, tmp_path, longest={VERIFY: timedelta(seconds=0.1)}).run(leave())
    ]
    assert [one.WhichOneof("kind") for one in events] == ["attempt", "failed"]
    assert events[-1].failed.reason == "it took longer than it may"
    assert suite.removed.is_set()


async def test_a_suite_that_fails_keeps_its_verdicts_and_has_no_summary(tmp_path):
    events = [found(one) async for one in inspections(Suite(fails="it died"), tmp_path).run(leave())]
    assert [one.WhichOneof("kind") for one in events] == ["attempt", "failed"]
    assert events[-1].failed.reason == "it died"


async def test_an_executor_that_stops_ends_it_and_takes_no_more(tmp_path):
    suite = Suite()
    own = inspections(suite, tmp_path)
    running = own.run(leave())
    await anext(running)
    own.begin_closing()
    assert [found(one).failed.reason async for one in running] == ["the executor stopped"]
    await own.close()
    with pytest.raises(UnavailableError):
        await anext(own.run(leave()))


TALK = """
import json, signal, sys, time
def say(**record): print(json.dumps(record), flush=True)
say(kind="attempt", name="mount", family="FILES", breach="b", verdict="CONTAINED", promised=True, evidence=" ".join(
    sys.argv[1:]), seconds=0.5)
{more}
"""
SUMMARY = (
    'say(kind="summary", engine="gvisor", version="1", isolation="USER_KERNEL", counts=dict(CONTAINED=1, VULNERABLE=0,'
    " NOT_RUN=0), short=0, known=94, seconds=1)"
)


@pytest.fixture
def child(tmp_path: Path):
    settings = Settings(run_dir=tmp_path / "run", cgroup=f"crucible-test-{uuid.uuid4().hex[:12]}")

    def made(more: str) -> ChildSuite:
        return ChildSuite(settings, tmp_path, "x-1", [sys.executable, "-c", TALK.format(more=more)])

    made.cgroup = f"{settings.cgroup}-inspect"
    yield made
    assert cgroups.detect(made.cgroup).existing() == []
    assert not (tmp_path / "attack-suite").exists()


@pytest.mark.root
async def test_the_child_runs_with_fixed_arguments_and_its_results_come_one_by_one(child):
    results = [one async for one in child(SUMMARY).run("gvisor", ["mount"])]
    arguments = results[0].evidence.split()
    assert arguments[:3] == ["--engine", "gvisor", "--lines"]
    assert arguments[-2:] == ["--only", "mount"]
    assert "--controls" not in arguments
    assert (results[0].verdict, results[1].attempts_known) == (pb.VERDICT_CONTAINED, 94)


@pytest.mark.root
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("sys.exit(0)", "ended early, with exit code 0"),
        (f"{SUMMARY}; sys.stderr.write('no cgroups'); sys.exit(3)", "exit code 3: no cgroups"),
        ("import os; os.kill(os.getpid(), 9)", "ended early, with signal 9"),
        ("print('rubbish')", "no JSON"),
        ("print('[]')", "never says"),
        ("say(kind='attempt', name='x')", "never says"),
        ("say(kind='attempt', verdict='FINE')", "never says"),
        ("sys.stdout.write('x' * 200000); sys.stdout.flush(); time.sleep(60)", "too long"),
    ],
)
async def test_a_child_that_misbehaves_never_gets_a_summary(child, more, said):
    results = []
    with pytest.raises(SuiteFailedError, match=said):
        await take(child(more).run("gvisor", []), results)
    assert [type(one) for one in results] == [pb.AttemptResult]


@pytest.mark.root
async def test_a_child_that_never_stops_talking_is_heard_for_as_many_attempts_as_there_are(child):
    more = (
        "while True: say(kind='attempt', name='x', family='F', breach='', verdict='CONTAINED', promised=True, "
        "evidence='', seconds=0)"
    )
    results = []
    with pytest.raises(SuiteFailedError, match="more lines than it has attempts"):
        await take(child(more).run("gvisor", []), results)
    assert len(results) == len(ATTEMPTS) + 1


@pytest.mark.root
async def test_a_child_that_refuses_at_once_says_why(child, tmp_path):
    refuses = "import sys; print('crucible verify: no', file=sys.stderr); sys.exit(2)"
    settings = Settings(run_dir=tmp_path / "run", cgroup=child.cgroup.removesuffix("-inspect"))
    suite = ChildSuite(settings, tmp_path, "x-1", [sys.executable, "-c", refuses])
    with pytest.raises(FailedPreconditionError) as refused:
        await anext(suite.run("gvisor", []))
    assert (refused.value.reason, refused.value.message) == ("CANNOT_VERIFY", "no")


@pytest.mark.root
async def test_closing_the_results_ends_a_child_that_ignores_the_request_and_what_it_started(child, monkeypatch):
    monkeypatch.setattr("crucible_executor.attack_suite._STOP_SECONDS", 0.3)
    more = (
        "import os, subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['/bin/sleep', '300'], start_new_session=True)\n"
        "say(kind='attempt', name='x', family='F', breach='', verdict='NOT_RUN', promised=False, "
        "evidence=f'{os.getpid()} {child.pid}', seconds=0)\ntime.sleep(300)"
    )
    running = child(more).run("gvisor", [])
    await anext(running)
    pids = (await anext(running)).evidence.split()
    await running.aclose()
    assert [pid for pid in pids if alive(pid)] == []


@pytest.mark.root
async def test_a_start_removes_what_a_killed_executors_suite_left(child, tmp_path):
    name = f"cv{uuid.uuid4().hex[:14]}"
    groups = []
    for folder in (child.cgroup, name):
        tree = cgroups.detect(folder)
        tree.prepare()
        groups.append(tree.create("s1", cgroups.Bounds(64 << 20, 16)))
    left = [await asyncio.create_subprocess_exec("/bin/sleep", "300") for _ in groups]
    for group, process in zip(groups, left, strict=True):
        for file in group.procs_files:
            file.write_text(str(process.pid))
    (tmp_path / "attack-suite").write_text(f"{name} gvisor\n")
    await child("").sweep()
    assert [await asyncio.wait_for(process.wait(), 10) for process in left] == [-9, -9]
    assert cgroups.detect(name).existing() == []


@pytest.mark.root
@pytest.mark.timeout(200)
@pytest.mark.parametrize("engine", ["gvisor", "docker"])
async def test_the_real_suite_says_its_verdicts_as_lines(tmp_path, engine):
    cgroup = f"crucible-test-{uuid.uuid4().hex[:12]}"
    settings = Settings(run_dir=tmp_path / "run", cgroup=cgroup, trace_user="daemon")  # which no stack makes or removes
    results = [one async for one in ChildSuite(settings, tmp_path, "x-1").run(engine, ["mount", "bpf"])]
    assert {one.name: one.verdict for one in results[:-1]} == {
        "mount": pb.VERDICT_CONTAINED, "bpf": pb.VERDICT_CONTAINED,
    }  # fmt: skip
    assert (results[-1].contained, results[-1].short_of_promise, results[-1].engine) == (2, 0, engine)


async def take(stream, into: list) -> None:
    async for one in stream:
        into.append(one)  # noqa: PERF401  # what came before an error counts


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
