"""An executor over an engine of our own, storage's signatures, certificates: for tests of executor and worker."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from crucible.evaluation.v1.behaviour_update_pb2 import BehaviourUpdate
from crucible.evaluation.v1.evaluation_pb2 import File, Limits, Program
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from crucible_executor import model
from crucible_executor.behaviour import Action, Observation, Sight, Update
from crucible_executor.cgroups import Counters
from crucible_executor.engines.base import Capabilities, Engine, Sandbox, Sink
from crucible_executor.executor_clock import uptime_clock
from crucible_executor.sampling import Sample
from crucible_executor.selftest import engine as engine_test
from crucible_executor.selftest.model import Check, CheckFailedError
from crucible_executor.service import ExecutorService
from crucible_executor.settings import Settings
from crucible_rpc import pki, signing
from crucible_rpc.channel import connect
from crucible_rpc.tls import ClientTls
from tests.executor import left_messages

PROCESSES = ("executor", "worker", "storage", "gateway")


@dataclass(frozen=True)
class Keys:
    """Certificates and signing keys of one installation, below one folder."""

    folder: Path
    tickets: signing.Signer
    records: signing.Verifier

    @classmethod
    def make(cls, folder: Path) -> Keys:
        ca = pki.make_ca()
        for process in PROCESSES:
            own = folder / process
            own.mkdir(parents=True)
            certificate = pki.issue(ca, process)
            (own / "tls.crt").write_bytes(certificate.cert_pem)
            (own / "tls.key").write_bytes(certificate.key_pem)
            (own / "ca.crt").write_bytes(ca.cert_pem)
        tickets, records = signing.generate(), signing.generate()
        (folder / "tickets.pub").write_bytes(tickets.public_pem)
        (folder / "records.key").write_bytes(records.private_pem)
        return cls(folder, signing.Signer(tickets.private_pem), signing.Verifier.of(records.public_pem))

    def tls(self, process: str) -> ClientTls:
        own = self.folder / process
        return ClientTls(own / "tls.crt", own / "tls.key", own / "ca.crt")

    def record(self, signed: SignedBytes) -> ex.FinalRecord:
        """The record inside, its signature checked."""
        self.records.verify("crucible.record.v1", signed.payload, signed.key_id, signed.signature)
        return ex.FinalRecord.FromString(signed.payload)


class ScriptedSandbox(Sandbox):
    """Does what the first file's JSON says: `out`, `err` (text), `tried` (kinds and examples), `samples` (how many),
    `times`, `block`, `exit`, `raise`, `leaves` (files, each by path: its text, or how many bytes).
    """

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        self._id = uuid.uuid4().hex
        self._killed = asyncio.Event()

    @property
    def id(self) -> str:
        return self._id

    async def start(self, program: model.Program, limits: model.Limits, sink: Sink) -> model.Outcome:
        script = json.loads(program.files[0].content)
        self._engine.note_start(script.get("name", ""))
        sink.started()
        for _ in range(script.get("times", 1)):
            if "out" in script:
                sink.output(model.Stream.STDOUT, script["out"].encode())
            if "err" in script:
                sink.output(model.Stream.STDERR, script["err"].encode())
            if script.get("times", 1) > 1:
                await asyncio.sleep(0)
        for count, (kind, example) in enumerate(script.get("tried", ()), 1):
            sight = Sight(Action[kind], example, count, datetime.now(UTC))
            sink.tried(Update(Observation.OBSERVED, sights=(sight,)))
        for number in range(1, script.get("samples", 0) + 1):
            counters = Counters(timedelta(milliseconds=50 * number), number, 5)
            sink.sampled(Sample(timedelta(milliseconds=100 * number), counters))
        if "raise" in script:
            raise RuntimeError(script["raise"])
        termination: Any = model.Exited(script.get("exit", 0))
        if script.get("block"):
            release = asyncio.ensure_future(self._engine.release.wait())
            killed = asyncio.ensure_future(self._killed.wait())
            try:
                await asyncio.wait({release, killed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                release.cancel()
                killed.cancel()
            sink.output(model.Stream.STDOUT, script.get("last", "").encode())
            if self._engine.unkillable:
                raise RuntimeError("its processes survive SIGKILL")
        sink.ending()
        if self._killed.is_set():
            termination = model.Killed()
        took = timedelta(milliseconds=1)
        usage = model.Usage(took, took, None, None, script.get("samples"))
        artifacts = model.Artifacts()
        if script.get("leaves") and limits.artifact_bytes:
            files = {
                path: b"x" * one if isinstance(one, int) else one.encode() for path, one in script["leaves"].items()
            }
            artifacts = await left_messages.collected(files, limits.artifact_bytes, sink.spool())
        return model.Outcome(termination, (), usage, artifacts=artifacts)

    async def kill(self) -> None:
        self._killed.set()

    async def destroy(self) -> None:
        if self._engine.unkillable or self._engine.undestroyable:
            raise RuntimeError("it is still in use")
        self._engine.destroyed += 1


class ScriptedEngine(Engine):
    """Runs nothing: its programs say what to pretend. Every start is a line in `starts`, also across processes."""

    def __init__(self, starts: Path, on_start: Callable[[str], None] = lambda name: None) -> None:
        self.release = asyncio.Event()
        self.unkillable = self.undestroyable = False
        self.traced = True
        self.broken = ""
        self.tests = 0
        self.created = self.destroyed = self.swept = 0
        self._starts = starts
        self._on_start = on_start

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("scripted", "1", model.Isolation.NONE, frozenset(model.Limit), traced=self.traced)

    def note_start(self, name: str) -> None:
        self._on_start(name)
        with self._starts.open("a") as file:
            file.write(f"{name}\n")

    def started(self) -> list[str]:
        return self._starts.read_text().split() if self._starts.exists() else []

    async def check(self) -> None:
        await engine_test.prove(self)

    def self_test(self) -> Sequence[Check]:
        async def works() -> str:
            self.tests += 1
            if self.broken:
                raise CheckFailedError(self.broken)
            return "said so"

        return (Check("engine scripted", "it works", works),)

    async def create(self, sandbox_class: model.SandboxClass) -> Sandbox:
        self.created += 1
        return ScriptedSandbox(self)

    async def sweep(self) -> int:
        self.swept += 1
        return 0


class NoImages:
    def digest(self, image: str) -> str | None:
        return None


def settings(keys: Keys, state: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "state_dir": state,
        "run_dir": state.with_name(f"{state.name}.run"),
        "cgroup": f"crucible-test-{hashlib.sha256(str(state).encode()).hexdigest()[:12]}",
        "tls_cert": keys.folder / "executor/tls.crt",
        "tls_key": keys.folder / "executor/tls.key",
        "tls_ca": keys.folder / "executor/ca.crt",
        "tickets_pub": (str(keys.folder / "tickets.pub"),),
        "records_key": keys.folder / "records.key",
        "default_engine": "scripted",
        "slots": 4,
        "shutdown_grace": timedelta(0),
        **changes,
    }
    return Settings(**values)


def spec(script: dict[str, Any]) -> bytes:
    program = Program(runtime="python", files=[File(path="main.py", content=json.dumps(script).encode())])
    return ex.RunSpec(program=program, engine="scripted").SerializeToString()


def new_run_id(attempt: int = 1) -> str:
    return f"{uuid.uuid4()}.{attempt}"


def limits(**changes: Any) -> Limits:
    values = {"cpus": 1.0, "memory_bytes": 64 << 20, "processes": 8, "open_files": 64, "output_bytes": 1 << 20}
    made = Limits(**{**values, "disk_bytes": 1 << 20, **changes})
    made.wall_time.FromTimedelta(timedelta(seconds=30))
    return made


def ticket(
    signer: signing.Signer,
    run_spec: bytes,
    *,
    executor_id: str,
    boot_id: str,
    run_id: str = "",
    asked: Limits | None = None,
    epoch: int = 1,
    since: ex.ExecutorTime,
    waited: float = 0,
    **changes: Any,
) -> SignedBytes:
    run_id = run_id or new_run_id()
    evaluation, attempt = run_id.split(".")
    message = ex.Ticket(
        run_id=run_id,
        evaluation=f"evaluations/{evaluation}",
        attempt=int(attempt),
        run_spec_sha256=hashlib.sha256(run_spec).digest(),
        limits=asked or limits(),
        lease_epoch=epoch,
        executor_id=executor_id,
        boot_id=boot_id,
        since=since,
    )
    message.waited.FromTimedelta(timedelta(seconds=waited))
    for name, value in changes.items():
        setattr(message, name, value)
    payload = message.SerializeToString()
    signature = signer.sign("crucible.ticket.v1", payload)
    return SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature)


class Uptime:
    """The clock of permits and tickets, which a test can set `ahead`: so many seconds have passed more."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._uptime = uptime_clock()

    def __call__(self) -> float:
        return self._uptime() + self.ahead


async def told_time(stub: Any) -> ex.ExecutorTime:
    return (await stub.GetExecutor(ex.GetExecutorRequest())).time


class RunningExecutor:
    """A served executor, a stub of its worker, and what its clock says."""

    def __init__(
        self,
        keys: Keys,
        service: ExecutorService,
        engine: ScriptedEngine,
        stub: Any,
        tell: Callable[[], ex.ExecutorTime],
        uptime: Uptime | None = None,
    ) -> None:
        self.keys = keys
        self.tell = tell
        self.uptime = uptime
        self.service = service
        self.engine = engine
        self.stub = stub

    def request(
        self, script: dict[str, Any] | None = None, run_id: str = "", permit: float = 15, **changes: Any
    ) -> ex.ExecuteRequest:
        run_spec = spec(script or {})
        names = {"executor_id": self.service.executor_id, "boot_id": self.service.boot_id, "since": self.tell()}
        signed = ticket(self.keys.tickets, run_spec, run_id=run_id, **{**names, **changes})
        made = ex.ExecuteRequest(ticket=signed, run_spec=run_spec)
        made.permit.FromTimedelta(timedelta(seconds=permit))
        return made

    async def execute(self, script: dict[str, Any] | None = None, **changes: Any) -> Collected:
        return await collect(self.stub.Execute(self.request(script, **changes)), self.keys)


@dataclass
class Collected:
    """Everything that a stream of events told."""

    stdout: bytes
    stderr: bytes
    started: int
    record: ex.FinalRecord
    updates: list[BehaviourUpdate]


async def single(answers: AsyncIterator[Any]) -> AsyncIterator[ex.RunEvent]:
    """Their events, one by one; no answer is empty."""
    async for answer in answers:
        assert answer.events
        for event in answer.events:
            yield event


async def collect(
    events: AsyncIterator[Any], keys: Keys, stdout: int = 0, stderr: int = 0, behaviour: int = 0
) -> Collected:
    """Reads to the end; fails when an output chunk or an update does not begin where the last one ended."""
    updates: list[BehaviourUpdate] = []
    parts: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
    begin = {1: stdout, 2: stderr}
    started = 0
    async for event in single(events):
        if event.HasField("started"):
            started += 1
        elif event.HasField("output"):
            chunk = event.output
            assert chunk.offset == begin[chunk.stream] + len(parts[chunk.stream])
            parts[chunk.stream] += chunk.data
        elif event.HasField("behaviour"):
            assert started
            updates.append(event.behaviour)
            assert event.behaviour.sequence == behaviour + len(updates)
        elif event.HasField("usage_samples"):
            assert started
        else:
            return Collected(bytes(parts[1]), bytes(parts[2]), started, keys.record(event.finished), updates)
    raise AssertionError("the stream ended without an end of the run")


@asynccontextmanager
async def running(
    keys: Keys, state: Path, engine: ScriptedEngine | None = None, **changes: Any
) -> AsyncIterator[RunningExecutor]:
    engine = engine or ScriptedEngine(state.with_name(f"{state.name}.starts"))
    registry = CollectorRegistry()
    uptime = Uptime()
    service = await ExecutorService.start(settings(keys, state, **changes), [engine], NoImages(), registry, uptime)
    stop = asyncio.Event()
    serving = asyncio.ensure_future(service.run(registry, stop))
    try:
        async with connect(f"127.0.0.1:{service.port}", keys.tls("worker"), "executor") as channel:
            yield RunningExecutor(keys, service, engine, ExecutorServiceStub(channel), service.clock.tell, uptime)
    finally:
        stop.set()
        await serving
