"""Storage's work in memory, behind a real server, and a worker between it and a real executor."""

# ruff: noqa: N802  # RPC names are the contract's
from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from crucible.evaluation.v1.behaviour_update_pb2 import BehaviourUpdate
from crucible.evaluation.v1.platform_pb2 import Executor
from crucible.evaluation.v1.usage_samples_pb2 import UsageSample
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import artifact_store_service_pb2 as artifacts
from crucible.storage.v1 import artifact_store_service_pb2_grpc, work_service_pb2_grpc
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc.channel import connect
from crucible_rpc.errors import AbortedError, FailedPreconditionError, UnavailableError
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ServerTls
from crucible_worker.grpc_peers import GrpcExecutor, GrpcStorage
from crucible_worker.metrics import WorkerMetrics
from crucible_worker.settings import Settings
from crucible_worker.worker import Worker
from tests.executor.support import Keys, new_run_id, spec, ticket

METHODS = ("RegisterExecutor", "LeaseWork", "RenewLeases", "ReportRuns", "WatchStops")
PERMISSIONS = {f"/crucible.storage.v1.WorkService/{method}": frozenset({"worker"}) for method in METHODS}
PERMISSIONS["/crucible.storage.v1.ArtifactStoreService/UploadArtifact"] = frozenset({"worker"})


@dataclass
class Stored:
    """One run as storage has it."""

    run_id: str
    run_spec: bytes
    epoch: int = 1
    boot_id: str = ""
    out: dict[int, bytes] = field(default_factory=lambda: {1: b"", 2: b""})
    behaviour: list[BehaviourUpdate] = field(default_factory=list)
    samples: list[UsageSample] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    started: int = 0
    record: ex.FinalRecord | None = None
    refused: work.Refused | None = None
    lost: work.RunLost | None = None
    stopping: bool = False
    leased: bool = False

    @property
    def over(self) -> bool:
        return self.record is not None or self.refused is not None or self.lost is not None


class MemoryStorage(
    work_service_pb2_grpc.WorkServiceServicer, artifact_store_service_pb2_grpc.ArtifactStoreServiceServicer
):
    """The rules of `WorkService` and of uploads that the worker depends on, and ways to misbehave."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.executor: Executor | None = None
        self.runs: dict[str, Stored] = {}
        self.queue: deque[str] = deque()
        self.changed = asyncio.Condition()
        self.registrations = self.renewals = self.calls = 0
        self.lease_calls = self.leased_with_reports = 0  # calls that brought work, and work that came with reports
        self.wishes: dict[str, list[work.Assignment]] = {}
        self.down = False
        self.answer_lost = 0  # so many reports are stored, but their answer does not arrive
        self.answering = asyncio.Event()  # cleared: reports are stored, and answered when it is set again
        self.answering.set()
        self.reject: dict[str, str] = {}
        self.takes_records = True
        self.lease_duration = timedelta(seconds=1.5)
        self.orphan_grace = timedelta(seconds=3)
        self.ticket_changes: dict[str, Any] = {}
        self.stop_queues: list[asyncio.Queue[str]] = []
        self.uploads: list[artifacts.ArtifactHeader] = []
        self.upload_errors: deque[Exception] = deque()  # each fails one upload, after half of its bytes
        self.store_is_up = asyncio.Event()  # cleared: uploads wait
        self.store_is_up.set()
        self.contents: dict[bytes, bytes] = {}  # what is stored already, by digest: such an upload is answered at once

    async def add(self, script: dict[str, Any]) -> Stored:
        run = self.make(script)
        await self.put(run)
        return run

    def make(self, script: dict[str, Any]) -> Stored:
        run = Stored(new_run_id(), spec(script))
        self.runs[run.run_id] = run
        return run

    async def put(self, run: Stored) -> None:
        async with self.changed:
            self.queue.append(run.run_id)
            self.changed.notify_all()

    async def stop(self, run: Stored) -> None:
        run.stopping = True
        for queue in self.stop_queues:
            queue.put_nowait(run.run_id)

    async def until(self, condition: Any, seconds: float = 20) -> None:
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(condition)

    def _check_up(self) -> None:
        if self.down:
            raise UnavailableError("PEER_UNAVAILABLE", "storage is away")

    async def RegisterExecutor(self, request, context):
        self._check_up()
        self.registrations += 1
        self.executor = request.executor
        answer = work.RegisterExecutorResponse(
            leases=[
                work.Lease(
                    run_id=run.run_id,
                    epoch=run.epoch,
                    boot_id=run.boot_id,
                    stdout_offset=len(run.out[1]),
                    stderr_offset=len(run.out[2]),
                    behaviour_sequence=len(run.behaviour),
                )
                for run in self.runs.values()
                if run.leased and not run.over
            ]
        )
        answer.lease_duration.FromTimedelta(self.lease_duration)
        answer.orphan_grace.FromTimedelta(self.orphan_grace)
        await self._tell()
        return answer

    async def LeaseWork(self, request, context):
        self._check_up()
        if self.executor is None or request.since.boot_id != self.executor.boot_id:
            raise FailedPreconditionError("NOT_REGISTERED", "register first")
        assert 1 <= request.max_runs <= 1000
        came = time.monotonic()
        try:
            async with asyncio.timeout(request.wait.ToTimedelta().total_seconds()), self.changed:
                await self.changed.wait_for(lambda: bool(self.queue))
                given = self._give(request.max_runs, request.since, time.monotonic() - came)
        except TimeoutError:
            return work.LeaseWorkResponse()
        self.lease_calls += 1
        self._check_up()
        return work.LeaseWorkResponse(assignments=given)

    def _give(self, most: int, since: ex.ExecutorTime, waited: float = 0) -> list[work.Assignment]:
        names = [self.queue.popleft() for _ in range(min(most, len(self.queue)))]
        return [self._assign(self.runs[name], since, waited) for name in names]

    def _assign(self, run: Stored, since: ex.ExecutorTime, waited: float) -> work.Assignment:
        run.leased, run.boot_id = True, self.executor.boot_id
        names = {"executor_id": self.executor.id, "boot_id": self.executor.boot_id, "since": since, "waited": waited}
        signed = ticket(
            self.keys.tickets, run.run_spec, run_id=run.run_id, epoch=run.epoch, **{**names, **self.ticket_changes}
        )
        evaluation = f"evaluations/{run.run_id.split('.')[0]}"
        return work.Assignment(
            run_id=run.run_id, evaluation=evaluation, epoch=run.epoch, ticket=signed, run_spec=run.run_spec
        )

    async def RenewLeases(self, request, context):
        self._check_up()
        self.renewals += 1
        await self._tell()
        lost = [ref.run_id for ref in request.leases if not self._holds(ref)]
        return work.RenewLeasesResponse(lost=lost, stops=[run.run_id for run in self.runs.values() if run.stopping])

    def _holds(self, ref: work.LeaseRef) -> bool:
        run = self.runs.get(ref.run_id)
        return run is not None and run.leased and not run.over and run.epoch == ref.epoch

    async def ReportRuns(self, request, context):
        self._check_up()
        self.calls += 1
        rejected = []
        for report in request.reports:
            reason = self.reject.get(report.lease.run_id, "")
            if not self._holds(report.lease):
                reason = "STALE_LEASE"
            reason = reason or self._store(self.runs[report.lease.run_id], report)
            if reason:
                rejected.append(work.RejectedReport(run_id=report.lease.run_id, reason=reason, message="no"))
        given = []
        if request.HasField("lease") and request.lease.since.boot_id == self.executor.boot_id:
            assert 1 <= request.lease.max_runs <= 1000
            if request.lease.request_id not in self.wishes:
                self.wishes[request.lease.request_id] = self._give(request.lease.max_runs, request.lease.since)
                self.leased_with_reports += len(self.wishes[request.lease.request_id])
            given = self.wishes[request.lease.request_id]
        await self._tell()
        await self.answering.wait()
        if self.answer_lost:
            self.answer_lost -= 1
            raise UnavailableError("PEER_UNAVAILABLE", "the answer got lost")
        return work.ReportRunsResponse(rejected=rejected, assignments=given)

    def _store(self, run: Stored, report: work.RunReport) -> str:
        for event in report.events:
            if event.HasField("started"):
                run.started += 1
            elif event.HasField("output"):
                chunk, have = event.output, run.out[event.output.stream]
                if chunk.offset > len(have):
                    return "OFFSET_GAP"
                run.out[chunk.stream] = have + chunk.data[len(have) - chunk.offset :]
            elif event.HasField("behaviour"):
                if event.behaviour.sequence > len(run.behaviour) + 1:
                    return "OFFSET_GAP"
                if event.behaviour.sequence == len(run.behaviour) + 1:
                    run.behaviour.append(event.behaviour)
            elif event.HasField("usage_samples"):
                told = event.usage_samples
                if told.first > len(run.samples) + 1:
                    return "OFFSET_GAP"
                run.samples += told.samples[len(run.samples) + 1 - told.first :]
            elif not self.takes_records:
                return "INVALID_RECORD"
            else:
                record = self.keys.record(event.finished)
                if any(file.path not in run.files for file in record.artifacts):
                    return "ARTIFACTS_MISSING"
                run.record = record
        if report.HasField("refused"):
            run.refused = report.refused
        elif report.HasField("lost"):
            run.lost = report.lost
        return ""

    async def UploadArtifact(self, request_iterator, context):
        self._check_up()
        header = (await anext(request_iterator)).header
        self.uploads.append(header)
        await self._tell()
        if not self._holds(header.lease) or header.executor_id != self.executor.id:
            raise AbortedError("STALE_LEASE", "the lease is gone")
        data, error = b"", self.upload_errors.popleft() if self.upload_errors else None
        while header.sha256 not in self.contents and len(data) < header.size:
            if (more := await anext(request_iterator, None)) is None:
                raise UnavailableError("PEER_UNAVAILABLE", "the upload was cut")
            data += more.data
            if error is not None and len(data) > header.size // 2:
                raise error
        await self.store_is_up.wait()
        data = self.contents.setdefault(header.sha256, data)
        assert (hashlib.sha256(data).digest(), len(data)) == (header.sha256, header.size)
        self.runs[header.lease.run_id].files[header.path] = data
        await self._tell()
        return artifacts.UploadArtifactResponse(bytes_kept=header.size, sha256=header.sha256)

    async def WatchStops(self, request, context):
        self._check_up()
        queue: asyncio.Queue[str] = asyncio.Queue()
        for run in self.runs.values():
            if run.stopping and not run.over:
                queue.put_nowait(run.run_id)
        self.stop_queues.append(queue)
        await self._tell()
        try:
            while True:
                run_id = await queue.get()
                self._check_up()
                yield work.WatchStopsResponse(stops=[work.LeaseRef(run_id=run_id, epoch=self.runs[run_id].epoch)])
        finally:
            self.stop_queues.remove(queue)

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


@asynccontextmanager
async def serving_storage(keys: Keys, storage: MemoryStorage) -> AsyncIterator[int]:
    own = keys.folder / "storage"
    tls = ServerTls(own / "tls.crt", own / "tls.key", own / "ca.crt")
    server = Server(
        "storage", "127.0.0.1:0", tls, authentication=PeerPermissions(PERMISSIONS), registry=CollectorRegistry()
    )
    server.add(work_service_pb2_grpc.add_WorkServiceServicer_to_server, storage)
    server.add(artifact_store_service_pb2_grpc.add_ArtifactStoreServiceServicer_to_server, storage)
    await server.start()
    try:
        yield server.port
    finally:
        await server.drain(timedelta(0))


class RunningWorker:
    def __init__(self, worker: Worker, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.worker = worker
        self.task = task
        self._stop = stop

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.wait_for(self.task, 10)

    async def crash(self) -> None:
        """Ends all that the worker does, as a SIGKILL would: nothing is handed over."""
        tasks = list(self.worker._tasks)
        for task in (self.task, *tasks):
            task.cancel()
        await asyncio.gather(self.task, *tasks, return_exceptions=True)


@asynccontextmanager
async def working(keys: Keys, storage_port: int, executor_port: int, **changes: Any) -> AsyncIterator[RunningWorker]:
    async with (
        connect(f"127.0.0.1:{storage_port}", keys.tls("worker"), "storage") as storage,
        connect(f"127.0.0.1:{executor_port}", keys.tls("worker"), "executor") as executor,
    ):
        settings = Settings(**{"stop_grace": timedelta(seconds=1), **changes})
        worker = Worker(settings, GrpcStorage(storage), GrpcExecutor(executor), WorkerMetrics(CollectorRegistry()))
        stop = asyncio.Event()
        running = RunningWorker(worker, stop, asyncio.ensure_future(worker.run(stop)))
        try:
            yield running
        finally:
            stop.set()
            await asyncio.gather(running.task, return_exceptions=True)
