"""A storage service with a clock that tests move, and an executor that signs what it says."""

import hashlib
from contextlib import asynccontextmanager
from datetime import timedelta

from prometheus_client import CollectorRegistry

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.platform_pb2 import Engine, Executor, Runtime
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import signing
from crucible_storage.clock import timestamp
from crucible_storage.evaluations import Wanted
from crucible_storage.keys import HeadKeys
from crucible_storage.leases import held_leases
from crucible_storage.metrics import Metrics
from crucible_storage.policy import Policy
from crucible_storage.service import running
from crucible_storage.sweeper import Sweeper
from tests.storage.databases import SqliteFiles

STDOUT, STDERR = pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR
TICKETS, RECORDS, HEADS = signing.generate(), signing.generate(), signing.generate()
OLD_HEADS, OLD_RECORDS = signing.generate(), signing.generate()
START = 1_800_000_000_000_000
POLICY = Policy()
FENCE = POLICY.fence
DATABASES = SqliteFiles()
"""Replaced for each test by what it runs on."""


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self):
        self.wall = START
        self.steady = 0.0

    def now(self):
        return self.wall

    def monotonic(self):
        return self.steady

    def advance(self, length):
        self.wall += length // timedelta(microseconds=1)
        self.steady += length.total_seconds()


def spec(code=b"print(1)", *, runtime="python", engine="gvisor", priority=0, labels=None, output_bytes=1 << 20):
    limits = pb.Limits(output_bytes=output_bytes, cpus=1, memory_bytes=512 << 20)
    limits.wall_time.FromTimedelta(timedelta(seconds=30))
    program = pb.Program(runtime=runtime, files=[pb.File(path="main.py", content=code)], env={"B": "2", "A": "1"})
    return pb.EvaluationSpec(program=program, limits=limits, engine=engine, priority=priority, labels=labels or {})


def executor(executor_id="ex-1", boot_id="boot-1", *, engines=("gvisor",), runtimes=("python",)):
    return Executor(
        id=executor_id,
        boot_id=boot_id,
        engines=[Engine(name=name, available=True) for name in engines] + [Engine(name="broken")],
        runtimes=[*(Runtime(name=name) for name in runtimes), Runtime(name="absent", unavailable_reason="no image")],
        slots=4,
    )


def told(boot_id="boot-1"):
    """What an executor's clock said; storage cannot tell whether it did."""
    return ex.ExecutorTime(boot_id=boot_id, uptime=timedelta(seconds=100), seal=b"seal")


def exited(code=0):
    evidence = pb.Evidence(source=pb.EVIDENCE_SOURCE_SANDBOX_INIT, detail=f"exit code {code}")
    return ex.RunTermination(exited=pb.Exited(code=code), evidence=evidence)


def killed(cause=ex.KILL_CAUSE_REQUESTED):
    evidence = pb.Evidence(source=pb.EVIDENCE_SOURCE_EXECUTOR, detail="all processes are gone")
    return ex.RunTermination(killed=ex.Killed(cause=cause), evidence=evidence)


def started(at=START):
    return ex.RunEvent(started=ex.ProgramStarted(time=timestamp(at)))


def output(data, offset=0, stream=STDOUT):
    return ex.RunEvent(output=ex.RunOutputChunk(stream=stream, offset=offset, data=data))


def kept(data, total=None):
    total = len(data) if total is None else total
    return ex.RunOutput(bytes_total=total, bytes_kept=len(data), sha256=hashlib.sha256(data).digest())


def final_record(assignment, termination, *, stdout=b"", stderr=b"", executor_id="ex-1", **changes):
    ticket = ex.Ticket.FromString(assignment.ticket.payload)
    final = ex.FinalRecord(
        run_id=assignment.run_id,
        evaluation=assignment.evaluation,
        attempt=ticket.attempt,
        lease_epoch=assignment.epoch,
        run_spec_sha256=hashlib.sha256(assignment.run_spec).digest(),
        runtime="python",
        engine="gvisor",
        engine_version="20260527",
        start_kind=pb.START_KIND_WARM,
        isolation=pb.ISOLATION_USER_KERNEL,
        limits=ticket.limits,
        termination=termination,
        stdout=kept(stdout),
        stderr=kept(stderr),
        executor_id=executor_id,
        boot_id="boot-1",
        start_time=timestamp(START + 1_500),
        usage=pb.Usage(peak_memory_bytes=1 << 20),
    )
    for name, value in changes.items():
        if isinstance(value, int | str | bytes):
            setattr(final, name, value)
        else:
            getattr(final, name).CopyFrom(value)
    return final


def signed(final, private_pem=RECORDS.private_pem, context="crucible.record.v1"):
    payload = final.SerializeToString()
    signature = signing.Signer(private_pem).sign(context, payload)
    return SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature)


def finished(assignment, termination=None, **facts):
    return ex.RunEvent(finished=signed(final_record(assignment, termination or exited(), **facts)))


def report(assignment, *events, **outcome):
    lease = work.LeaseRef(run_id=assignment.run_id, epoch=assignment.epoch)
    return work.RunReport(lease=lease, events=events, **outcome)


class World:
    """Short names for what tests do most."""

    def __init__(self, service, clock):
        self.service = service
        self.clock = clock
        self.policy = service.policy
        self.sweeper = Sweeper(service.database, service.policy, clock)

    async def create(self, tenant="t", *, request_id="", **parts):
        return await self.service.evaluations.create(Wanted.of(tenant, "key-1", request_id, spec(**parts)))

    async def register(self, **parts):
        return await self.service.leases.register(executor(**parts))

    async def lease(self, count=1, *, executor_id="ex-1", boot_id="boot-1", wait=0.0):
        leased = await self.service.leases.lease(executor_id, told(boot_id), count, wait)
        await self.sweeper.observe()
        return leased

    async def lease_one(self, **which):
        [assignment] = await self.lease(**which)
        return assignment

    async def report(self, *reports, executor_id="ex-1"):
        return await self.service.reports.store(executor_id, reports)

    async def get(self, evaluation, tenant="t"):
        name = evaluation if isinstance(evaluation, str) else getattr(evaluation, "evaluation", None) or evaluation.name
        return await self.service.evaluations.get(tenant, name.removeprefix("evaluations/"))

    async def cancel(self, evaluation, reason="enough"):
        name = evaluation.name.removeprefix("evaluations/")
        return await self.service.evaluations.cancel("t", name, "key-2", reason)

    async def renew(self, *assignments, executor_id="ex-1"):
        leases = [work.LeaseRef(run_id=one.run_id, epoch=one.epoch) for one in assignments]
        renewed = await self.service.leases.renew(executor_id, leases)
        await self.sweeper.observe()
        return renewed

    async def renewable(self, executor_id):
        """The run ids of the leases that this executor holds."""
        held = await self.service.database.read(lambda connection: held_leases(connection, executor_id))
        return [one.run_id for one in held]

    async def sweep(self):
        """As a sweeper that saw each lease when it was given and renewed."""
        return await self.sweeper.look()

    async def running(self, **parts):
        """A new evaluation that an executor runs."""
        await self.create(**parts)
        await self.register()
        assignment = await self.lease_one()
        assert await self.report(report(assignment, started())) == []
        return assignment

    async def events(self, after=0):
        """All events of the log."""
        tail = self.service.events.tail(after)
        last = (await anext(tail)).last_position
        events = []
        while len(events) < last - after:
            events += (await anext(tail)).events
        await tail.aclose()
        return events


def head_keys(current=HEADS, *others):
    """The keys of heads, as `keys.head_keys` reads them from files; `others` were used before."""
    signer = signing.Signer(current.private_pem)
    return HeadKeys(signer, signing.Verifier.of(signer.public_pem(), *(one.public_pem for one in others)))


@asynccontextmanager
async def storage(folder, policy=POLICY, clock=None, heads=None, blobs=None):
    """A storage service over a folder, on the database of the test that runs."""
    clock = clock or FakeClock()
    heads = heads or head_keys()
    backend = DATABASES.backend(folder, clock)
    signer, verifier = signing.Signer(TICKETS.private_pem), signing.Verifier.of(RECORDS.public_pem)
    async with running(
        folder, policy, clock, signer, verifier, heads, Metrics(CollectorRegistry()), backend, blobs=blobs
    ) as service:
        yield World(service, clock)
