"""What storage alone does, in this process, over databases of its own: rates, and what a call costs in a full one.

`python -m crucible_storage.benchmark --folder DIR` prints JSON; everything is answered after its commit, as always.
With `--url` the databases are made on that PostgreSQL server.
The two databases whose costs are compared are used in turn, so that what else the machine does weighs on both.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.platform_pb2 import Engine, Executor, Runtime
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import signing
from crucible_storage.clock import Clock, DatabaseClock, SystemClock, timestamp
from crucible_storage.databases import choose
from crucible_storage.evaluations import Wanted
from crucible_storage.final_records import CONTEXT
from crucible_storage.keys import HeadKeys
from crucible_storage.lists import Filter
from crucible_storage.metrics import Metrics
from crucible_storage.names import parse_evaluation_name
from crucible_storage.policy import Policy
from crucible_storage.service import Service, running

AT_ONCE = 256
SLOTS = 32
WORKERS = 2
PAGE = 50
_TENANT = "bench"
_OUTPUT = b"1\n"
_TICKETS, _RECORDS = signing.generate(), signing.generate()
_HEAD_SIGNER = signing.Signer(signing.generate().private_pem)
_HEADS = HeadKeys(_HEAD_SIGNER, _HEAD_SIGNER.verifier())


@dataclass(frozen=True, slots=True)
class Cost:
    """Median milliseconds of one call over the smaller and the larger database."""

    small_ms: float
    large_ms: float


@dataclass(frozen=True, slots=True)
class Found:
    """All that was measured.

    Attributes:
        created_per_s: evaluations created, many calls at once.
        lived_per_s: evaluations through create, lease, start and end, as workers with many slots bring them.
        lived_cpu_ms: CPU of this process per evaluation of these, with the signatures of what plays the executor.
        lease_p99_ms: of a lease of one, of `lease_samples`, while `large` are stored and wait.
        lease_samples: how many these were.
        small: evaluations stored in the smaller database.
        large: evaluations stored in the larger one.
        costs: by call.
    """

    created_per_s: float
    lived_per_s: float
    lived_cpu_ms: float
    lease_p99_ms: float
    lease_samples: int
    small: int
    large: int
    costs: dict[str, Cost]


class Bench:
    """One storage, and what plays its gateway, worker and executor."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._signer = signing.Signer(_RECORDS.private_pem)
        self.names: list[str] = []

    async def register(self) -> None:
        """Makes the executors known that lease."""
        for number in range(WORKERS):
            engines, runtimes = [Engine(name="gvisor", available=True)], [Runtime(name="python")]
            executor = Executor(id=f"ex-{number}", boot_id="boot", engines=engines, runtimes=runtimes, slots=SLOTS)
            await self.service.leases.register(executor)

    async def create(self) -> None:
        """One evaluation."""
        made = await self.service.evaluations.create(Wanted.of(_TENANT, "key", "", _spec()))
        self.names.append(parse_evaluation_name(made.name))

    async def fill(self, count: int) -> float:
        """So many more evaluations, `AT_ONCE` calls at once; answers the seconds."""
        left = iter(range(count))

        async def lane() -> None:
            for _ in left:
                await self.create()

        begun = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
        return time.perf_counter() - begun

    async def live(self, count: int) -> float:
        """So many evaluations from their creation to their end; answers the seconds."""
        begun = time.perf_counter()
        rounds = max(1, count // (WORKERS * SLOTS))
        await asyncio.gather(*(self._work(f"ex-{number}", rounds) for number in range(WORKERS)))
        return (time.perf_counter() - begun) * count / (rounds * WORKERS * SLOTS)

    async def _work(self, executor: str, rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.gather(*(self.create() for _ in range(SLOTS)))
            given = await self.service.leases.lease(executor, "boot", SLOTS, 10.0)
            started = ex.RunEvent(started=ex.ProgramStarted(time=timestamp(SystemClock().now())))
            await self._report(executor, [_report(one, started) for one in given])
            output = ex.RunOutputChunk(stream=pb.OUTPUT_STREAM_STDOUT, offset=0, data=_OUTPUT)
            ended = [_report(one, ex.RunEvent(output=output), self._finished(one, executor)) for one in given]
            await self._report(executor, ended)

    async def _report(self, executor: str, reports: Sequence[work.RunReport]) -> None:
        if refused := await self.service.reports.store(executor, reports):
            raise RuntimeError(f"a report was refused: {refused[0].message}")

    def _finished(self, assignment: work.Assignment, executor: str) -> ex.RunEvent:
        ticket = ex.Ticket.FromString(assignment.ticket.payload)
        output = ex.RunOutput(bytes_total=2, bytes_kept=2, sha256=hashlib.sha256(_OUTPUT).digest())
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
            stdout=output,
            stderr=ex.RunOutput(sha256=hashlib.sha256().digest()),
            executor_id=executor,
            boot_id="boot",
            start_time=ticket.issue_time,
        )
        payload = final.SerializeToString()
        made = self._signer.sign(CONTEXT, payload)
        return ex.RunEvent(finished=SignedBytes(payload=payload, key_id=made.key_id, signature=made.signature))

    async def get(self) -> None:
        """Any one."""
        await self.service.evaluations.get(_TENANT, random.choice(self.names))  # noqa: S311  # a sample, no secret

    async def page(self) -> None:
        """The newest ones."""
        await self.service.lists.page(Filter(_TENANT), PAGE, "")

    async def lease(self) -> None:
        """One."""
        if not await self.service.leases.lease("ex-0", "boot", 1, 0.0):
            raise RuntimeError("nothing was leased from a full queue")


def _spec() -> pb.EvaluationSpec:
    program = pb.Program(runtime="python", files=[pb.File(path="main.py", content=b"print(1)\n")])
    limits = pb.Limits(output_bytes=1 << 20, cpus=1, memory_bytes=512 << 20)
    limits.wall_time.FromTimedelta(timedelta(seconds=30))
    return pb.EvaluationSpec(program=program, limits=limits, engine="gvisor")


def _report(assignment: work.Assignment, *events: ex.RunEvent) -> work.RunReport:
    return work.RunReport(lease=work.LeaseRef(run_id=assignment.run_id, epoch=assignment.epoch), events=events)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _timed(call: Callable[[], Awaitable[None]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000


def at(values: Sequence[float], share: float) -> float:
    """The value below which this share of all lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def _costs(small: Bench, large: Bench, samples: int) -> tuple[dict[str, Cost], list[float]]:
    """The costs, and what each lease from the larger one took."""
    calls = ("get", "page", "create", "lease")
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for number in range(samples):
        for name in calls:
            for which in (0, 1) if number % 2 else (1, 0):
                taken[name][which].append(await _timed(getattr((small, large)[which], name)))
    costs = {name: Cost(at(few, 0.5), at(many, 0.5)) for name, (few, many) in taken.items()}
    return costs, taken["lease"][1]


async def measure(folder: Path, url: str, count: int, small: int, large: int, samples: int) -> Found:
    """Everything, over databases in folders of this one.

    Args:
        folder: of the disk that is to be measured.
        url: of a PostgreSQL server, with `{}` where a database's name goes; empty: SQLite.
        count: evaluations for each rate.
        small: evaluations in the smaller database; more than `samples`.
        large: in the larger one.
        samples: calls of each kind; a p99 wants at least 100.
    """
    policy = Policy(max_queued=large + count + samples)
    signer, verifier = signing.Signer(_TICKETS.private_pem), signing.Verifier.of(_RECORDS.public_pem)
    async with AsyncExitStack() as stack:

        async def opened(name: str) -> Bench:
            metrics = Metrics(CollectorRegistry())
            clock: Clock = DatabaseClock() if url else SystemClock()
            backend = choose(_made(url, name), _state(folder, name), clock=clock)
            service = running(folder / name, policy, clock, signer, verifier, _HEADS, metrics, backend)
            bench = Bench(await stack.enter_async_context(service))
            await bench.register()
            return bench

        rates = await opened("rates")
        await rates.live(2 * WORKERS * SLOTS)  # modules and statements are ready
        cpu = _cpu_s()
        lived = await rates.live(count)
        cpu = _cpu_s() - cpu
        created = await rates.fill(count)
        few, many = await opened("small"), await opened("large")
        await few.fill(small)
        await many.fill(large)
        costs, leases = await _costs(few, many, samples)
    return Found(count / created, count / lived, cpu / count * 1000, at(leases, 0.99), samples, small, large, costs)


def _state(folder: Path, name: str) -> Path:
    state = folder / name
    state.mkdir(exist_ok=True)
    return state


def _made(url: str, name: str) -> str:
    """The URL of a new database of this name; empty without a server."""
    if not url:
        return ""
    import psycopg  # some megabytes: only where it is used
    from psycopg import sql

    with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return url.format(name)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="crucible_storage.benchmark", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder on the disk to be measured")
    parser.add_argument("--url", default="", help="of a PostgreSQL server, with {} where a database's name goes")
    parser.add_argument("--count", type=int, default=2000, help="evaluations for each rate")
    parser.add_argument("--small", type=int, default=1000, help="evaluations stored in the smaller database")
    parser.add_argument("--large", type=int, default=100_000, help="in the larger one")
    parser.add_argument("--samples", type=int, default=200, help="calls of each kind")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    sizes = (options.count, options.small, options.large, options.samples)
    found = asyncio.run(measure(options.folder, options.url, *sizes))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
