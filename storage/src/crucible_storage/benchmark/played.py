"""One storage, and what plays its gateway, its workers and an engine that returns at once."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.platform_pb2 import Engine, Executor, Runtime
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import signing
from crucible_storage import store
from crucible_storage.batch_items import MAX_ITEMS, Item
from crucible_storage.batches import Header
from crucible_storage.clock import Clock, DatabaseClock, SystemClock, timestamp
from crucible_storage.databases import choose
from crucible_storage.evaluations import Wanted
from crucible_storage.final_records import CONTEXT
from crucible_storage.keys import HeadKeys
from crucible_storage.lists import Filter
from crucible_storage.metrics import Metrics
from crucible_storage.names import new_id, parse_batch_name
from crucible_storage.policy import Policy
from crucible_storage.service import Service, running

AT_ONCE = 256
SLOTS = 32
WORKERS = 8
LIVE_WORKERS = 2
BATCHES_AT_ONCE = 2
PAGE = 50
PART = 200
"""Items of a batch in one transaction, as the gateway sends them."""

TENANT, BOOT = "bench", "boot"
SINCE = ex.ExecutorTime(boot_id=BOOT)
_OUTPUT = b"1\n"
_TICKETS, _RECORDS = signing.generate(), signing.generate()
_HEAD_SIGNER = signing.Signer(signing.generate().private_pem)
_HEADS = HeadKeys(_HEAD_SIGNER, _HEAD_SIGNER.verifier())


class Bench:
    """One storage, and what plays its gateway, worker and executor."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._ids: list[str] = []
        self._signer = signing.Signer(_RECORDS.private_pem)

    async def register(self) -> None:
        """Makes the executors known that lease."""
        for number in range(WORKERS):
            await self.service.leases.register(executor(f"ex-{number}"))

    async def create(self) -> None:
        """One evaluation."""
        await self.service.evaluations.create(Wanted.of(TENANT, "key", "", spec()))

    async def create_many(self, count: int) -> float:
        """So many more evaluations, each by a call, `AT_ONCE` calls at once; answers the seconds."""
        left = iter(range(count))

        async def lane() -> None:
            for _ in left:
                await self.create()

        begun = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
        return time.perf_counter() - begun

    async def fill(self, count: int) -> float:
        """So many more evaluations in batches, several at once, part by part as the gateway sends them; the seconds."""
        begun = time.perf_counter()
        sizes = [min(count - at, MAX_ITEMS) for at in range(0, count, MAX_ITEMS)]
        if len(sizes) == 1:
            sizes = [count - count // 2, count // 2]
        left = iter([size for size in sizes if size])
        await asyncio.gather(*(self._add_batches(left) for _ in range(BATCHES_AT_ONCE)))
        return time.perf_counter() - begun

    async def _add_batches(self, sizes: Iterator[int]) -> None:
        batches = self.service.batches
        wanted = Wanted.of(TENANT, "key", "", spec())
        for size in sizes:
            header = Header(TENANT, "key", new_id(), {}, start_when_complete=False)
            batch = parse_batch_name((await batches.open(header)).name)
            for first in range(0, size, PART):
                numbers = range(first, min(first + PART, size))
                await batches.add(TENANT, batch, [_item(number, wanted) for number in numbers])
            await batches.complete(TENANT, batch, size)

    async def live(self, count: int) -> float:
        """So many evaluations from their creation to their end; answers the seconds."""
        begun = time.perf_counter()
        rounds = max(1, count // (LIVE_WORKERS * SLOTS))
        await asyncio.gather(*(self._live(number, rounds) for number in range(LIVE_WORKERS)))
        return (time.perf_counter() - begun) * count / (rounds * LIVE_WORKERS * SLOTS)

    async def _live(self, worker: int, rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.gather(*(self.create() for _ in range(SLOTS)))
            await self.run_some(worker, SLOTS)

    async def run_some(self, worker: int, most: int) -> list[work.Assignment]:
        """Leases so many at most, and reports that each started and, in a further call, that it ended."""
        name = f"ex-{worker}"
        given = await self.service.leases.lease(name, SINCE, most, 0.0)
        if given:
            started = ex.RunEvent(started=ex.ProgramStarted(time=timestamp(SystemClock().now())))
            await self._report(name, [report(one, started) for one in given])
            output = ex.RunEvent(output=ex.RunOutputChunk(stream=pb.OUTPUT_STREAM_STDOUT, offset=0, data=_OUTPUT))
            ended = [report(one, output, finished(one, name, self._signer, _OUTPUT)) for one in given]
            await self._report(name, ended)
        return given

    async def _report(self, name: str, reports: Sequence[work.RunReport]) -> None:
        if refused := await self.service.reports.store(name, reports):
            raise RuntimeError(f"a report was refused: {refused[0].message}")

    async def look_round(self, samples: int) -> None:
        """Notes some of the evaluations for `get`, from all over the table, when all audit records are sealed."""
        await self.service.sealer.seal()
        last = max((await self.service.evaluations.counts(TENANT)).values())
        seqs = [random.randint(1, last) for _ in range(samples)]  # noqa: S311  # a sample, no secret
        database = self.service.database
        self._ids = await database.read(lambda one: [store.load_by_seq(one, seq).id for seq in seqs])

    async def get(self) -> None:
        """Any one."""
        await self.service.evaluations.get(TENANT, random.choice(self._ids))  # noqa: S311  # a sample, no secret

    async def page(self) -> None:
        """The newest ones."""
        await self.service.lists.page(Filter(TENANT), PAGE, "")

    async def lease(self) -> None:
        """One."""
        if not await self.service.leases.lease("ex-0", SINCE, 1, 0.0):
            raise RuntimeError("nothing was leased from a full queue")


def spec() -> pb.EvaluationSpec:
    """The program of every evaluation here."""
    program = pb.Program(runtime="python", files=[pb.File(path="main.py", content=b"print(1)\n")])
    limits = pb.Limits(output_bytes=1 << 20, cpus=1, memory_bytes=512 << 20)
    limits.wall_time.FromTimedelta(timedelta(seconds=30))
    return pb.EvaluationSpec(program=program, limits=limits, engine="gvisor")


def executor(name: str) -> Executor:
    """One that can run that program."""
    engines, runtimes = [Engine(name="gvisor", available=True)], [Runtime(name="python")]
    return Executor(id=name, boot_id=BOOT, engines=engines, runtimes=runtimes, slots=SLOTS)


def finished(
    assignment: work.Assignment,
    executor_id: str,
    signer: signing.Signer,
    stdout: bytes,
    artifacts: Sequence[ex.RunArtifact] = (),
) -> ex.RunEvent:
    """A run's end with code 0, as its executor signs it."""
    ticket = ex.Ticket.FromString(assignment.ticket.payload)
    size, sha256 = len(stdout), hashlib.sha256(stdout).digest()
    final = ex.FinalRecord(
        run_id=assignment.run_id,
        evaluation=assignment.evaluation,
        attempt=ticket.attempt,
        lease_epoch=assignment.epoch,
        run_spec_sha256=ticket.run_spec_sha256,
        runtime="python",
        engine="gvisor",
        limits=ticket.limits,
        termination=ex.RunTermination(exited=pb.Exited(code=0)),
        stdout=ex.RunOutput(bytes_total=size, bytes_kept=size, sha256=sha256),
        stderr=ex.RunOutput(sha256=hashlib.sha256().digest()),
        executor_id=executor_id,
        boot_id=BOOT,
        start_time=ticket.issue_time,
        artifacts=artifacts,
    )
    payload = final.SerializeToString()
    made = signer.sign(CONTEXT, payload)
    return ex.RunEvent(finished=SignedBytes(payload=payload, key_id=made.key_id, signature=made.signature))


def _item(number: int, wanted: Wanted) -> Item:
    return Item(str(number), number, named=False, after=(), run_anyway=False, sha256=wanted.spec_sha256, wanted=wanted)


def report(assignment: work.Assignment, *events: ex.RunEvent) -> work.RunReport:
    """What a worker tells of a run."""
    return work.RunReport(lease=work.LeaseRef(run_id=assignment.run_id, epoch=assignment.epoch), events=events)


@asynccontextmanager
async def opened(folder: Path, url: str, name: str) -> AsyncIterator[Bench]:
    """A storage over a new database of this name.

    Args:
        folder: on the disk that is to be measured.
        url: of a PostgreSQL server, with `{}` where a database's name goes; empty: SQLite.
        name: the database's.
    """
    signer, verifier = signing.Signer(_TICKETS.private_pem), signing.Verifier.of(_RECORDS.public_pem)
    clock: Clock = DatabaseClock() if url else SystemClock()
    state = folder / name
    state.mkdir(exist_ok=True)
    backend = choose(_made(url, name), state, clock=clock)
    metrics, policy = Metrics(CollectorRegistry()), Policy(max_queued=1 << 30, cache_bytes=0)
    async with running(state, policy, clock, signer, verifier, _HEADS, metrics, backend) as service:
        bench = Bench(service)
        await bench.register()
        yield bench


def _made(url: str, name: str) -> str:
    """The URL of a new database of this name; empty without a server."""
    if not url:
        return ""
    import psycopg  # some megabytes: only where it is used
    from psycopg import sql

    with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return url.format(name)
