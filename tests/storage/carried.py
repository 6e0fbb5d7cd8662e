"""Storage behind its real server, and real workers that carry its work to real executors, all in this process.

The engine runs nothing and keeps a ledger of what it was asked to start: a witness that storage has no part in.
"""

import asyncio
import json
import random
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from crucible.audit.v1 import audit_pb2 as audit
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_executor import model
from crucible_rpc.errors import ResourceExhaustedError, UnavailableError
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ServerTls
from crucible_storage.evaluations import Wanted
from crucible_storage.integrity.check import check
from crucible_storage.lifecycle import TERMINAL
from crucible_storage.metrics import Metrics
from crucible_storage.permissions import PERMISSIONS
from crucible_storage.policy import Policy
from crucible_storage.service import running
from crucible_storage.serving import add_services
from tests.executor.support import Keys, ScriptedEngine, ScriptedSandbox
from tests.executor.support import running as running_executor
from tests.storage import world as w
from tests.worker.support import working

SECOND = timedelta(seconds=1)
POLICY = Policy(
    lease=SECOND, orphan_grace=SECOND * 1.5, kill_margin=SECOND, max_attempts=8,
    backoff=SECOND / 20, backoff_limit=SECOND / 5,
)  # fmt: skip
PATIENCE = 60.0


@dataclass
class Ledger:
    """What the engines were asked to start: how often each program, which live, and which lived twice at once."""

    starts: Counter = field(default_factory=Counter)
    alive: Counter = field(default_factory=Counter)
    overlaps: list[str] = field(default_factory=list)


class TimedSandbox(ScriptedSandbox):
    """Takes `seconds` for what it prints, half of it at the start and half at the end."""

    def __init__(self, engine, ledger):
        super().__init__(engine)
        self._ledger = ledger

    async def start(self, program, limits, sink):
        script = json.loads(program.files[0].content)
        mark, half = script["mark"], len(script["out"]) // 2
        self._ledger.starts[mark] += 1
        if self._ledger.alive[mark]:
            self._ledger.overlaps.append(mark)
        self._ledger.alive[mark] += 1
        try:
            sink.started()
            sink.output(model.Stream.STDOUT, script["out"][:half].encode())
            killed = True
            try:
                await asyncio.wait_for(self._killed.wait(), script["seconds"])
            except TimeoutError:
                killed = False
                sink.output(model.Stream.STDOUT, script["out"][half:].encode())
            sink.ending()
        finally:
            self._ledger.alive[mark] -= 1
        usage = model.Usage(SECOND / 1000, SECOND / 1000, None, None)
        return model.Outcome(model.Killed() if killed else model.Exited(script["exit"]), (), usage)


class TimedEngine(ScriptedEngine):
    def __init__(self, folder: Path, ledger: Ledger):
        super().__init__(folder / "starts")
        self._ledger = ledger

    async def create(self, sandbox_class):
        return TimedSandbox(self, self._ledger)


@dataclass(frozen=True)
class Case:
    """An evaluation, and what it must come to."""

    mark: str
    name: str
    out: bytes
    code: int


class Carried:
    """A storage whose work is carried; `between` stands before it for each worker."""

    def __init__(self, service, keys: Keys, ledger: Ledger):
        self.service = service
        self.keys = keys
        self.ledger = ledger
        self.chance = random.Random(1)
        self.cases: list[Case] = []
        self.refused: list[Exception] = []

    async def create(self, count):
        """Accepts evaluations, repeating each until it is; the others of the group go on meanwhile."""
        first = len(self.cases)
        self.cases += await asyncio.gather(*(self._one(f"m{first + number}") for number in range(count)))

    async def _one(self, mark):
        out, code = mark * self.chance.randint(1, 400), self.chance.choice([0, 0, 0, 7])
        script = {"mark": mark, "out": out, "exit": code, "seconds": self.chance.choice([0, 0.01, 0.1, 0.4])}
        spec = w.spec(json.dumps(script).encode(), engine="scripted")
        for name, value in {"memory_bytes": 64 << 20, "processes": 8, "open_files": 64, "disk_bytes": 1 << 20}.items():
            setattr(spec.limits, name, value)
        wanted = Wanted.of("t", "key-1", f"request-{mark}", spec)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    made = await self.service.evaluations.create(wanted)
                except (UnavailableError, ResourceExhaustedError) as error:
                    self.refused.append(error)
                    await asyncio.sleep(0.05)
                else:
                    return Case(mark, made.name, out.encode(), code)

    async def ended(self):
        """Every evaluation, terminal; read again when storage could not be read just then."""
        return [await self._end(case) for case in self.cases]

    async def _end(self, case):
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    found = await self.service.evaluations.wait("t", case.name.removeprefix("evaluations/"), 5)
                except UnavailableError:
                    await asyncio.sleep(0.05)
                else:
                    if int(found.state) in TERMINAL:
                        return found

    async def judge(self, backend):
        """Holds what storage says against the ledger; answers how many evaluations needed another attempt."""
        ended = await self.ended()
        for case, done in zip(self.cases, ended, strict=True):
            await self._judge(case, done)
        assert self.ledger.overlaps == [], "two attempts of one evaluation were alive at once"
        assert set(self.ledger.starts) <= {case.mark for case in self.cases}
        with backend.reader.connect() as connection, connection.begin():
            verdict = check(connection, self.keys.records)
        backend.dispose()
        assert verdict.findings.shown == []
        assert verdict.progress.evaluations == len(self.cases)
        found = [one async for one in self.service.audit_log.verify(None) if isinstance(one, audit.AuditFinding)]
        assert found == []
        return sum(bool(done.failed_attempts) for done in ended)

    async def _judge(self, case, done):
        kind = done.termination.WhichOneof("kind")
        assert kind == "exited", (case.mark, done.termination, done.failed_attempts)
        assert done.termination.exited.code == case.code
        assert done.state == (pb.EVALUATION_STATE_FAILED if case.code else pb.EVALUATION_STATE_SUCCEEDED)
        parts = self.service.evaluations.read_output("t", case.name.removeprefix("evaluations/"), w.STDOUT, 0, 0)
        assert b"".join([data async for _, data in parts]) == case.out
        assert 1 <= self.ledger.starts[case.mark] <= done.attempt, "an attempt was started twice"
        assert [one.attempt for one in done.failed_attempts] == list(range(1, done.attempt))
        assert all(one.reason for one in done.failed_attempts)


@asynccontextmanager
async def serving(keys: Keys, add, permissions=PERMISSIONS):
    """A server with storage's certificate; answers its port."""
    own = keys.folder / "storage"
    tls = ServerTls(own / "tls.crt", own / "tls.key", own / "ca.crt")
    server = Server(
        "storage", "127.0.0.1:0", tls, authentication=PeerPermissions(permissions), registry=CollectorRegistry(),
        grace=timedelta(seconds=5),
    )  # fmt: skip
    add(server)
    await server.start()
    try:
        yield server.port
    finally:
        await server.drain(timedelta(0))


@asynccontextmanager
async def carried(folder: Path, databases, between=None, executors=2, state=None):
    """The whole.

    Args:
        folder: for all files.
        databases: see `tests.storage.databases`.
        between: called with the keys and storage's port; a context manager whose value is the port for one worker.
        executors: how many, each with its worker.
        state: storage's own folder; None: one below `folder`.
    """
    keys = Keys.make(folder / "keys")
    ledger = Ledger()
    clock, state = databases.clock(), state or folder / "state"
    backend = databases.backend(state, clock)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(
            running(
                state, POLICY, clock, keys.tickets, keys.records, w.head_keys(), Metrics(CollectorRegistry()), backend
            )
        )
        port = await stack.enter_async_context(serving(keys, lambda server: add_services(server, service)))
        for number in range(executors):
            own = folder / f"executor-{number}"
            own.mkdir()
            engine = TimedEngine(own, ledger)
            executor = await stack.enter_async_context(
                running_executor(keys, own / "state", engine, orphan_grace=POLICY.orphan_grace)
            )
            to = port if between is None else await stack.enter_async_context(between(keys, port))
            await stack.enter_async_context(working(keys, to, executor.service.port))
        yield Carried(service, keys, ledger)
