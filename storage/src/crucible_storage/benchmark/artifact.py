"""What storage's own process holds in memory while one large artifact goes in and out, in messages of 1 MiB."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import artifact_store_service_pb2 as pb
from crucible.storage.v1 import evaluation_store_service_pb2 as evaluations
from crucible.storage.v1 import work_service_pb2 as work
from crucible.storage.v1.artifact_store_service_pb2_grpc import ArtifactStoreServiceStub
from crucible.storage.v1.evaluation_store_service_pb2_grpc import EvaluationStoreServiceStub
from crucible.storage.v1.work_service_pb2_grpc import WorkServiceStub
from crucible_storage.benchmark import played
from crucible_storage.benchmark.served import Served, served

MIB = 1 << 20
_EXECUTOR = "ex-0"
_PATH = "large"
_RENEW_SECONDS = 3.0
_HEAD = 8


@dataclass(frozen=True, slots=True)
class Artifact:
    """What was found; the peaks are of the process's whole life until then.

    Attributes:
        mib: size of the artifact.
        before_mib: peak of the process's memory before it came.
        stored_mib: when it was in.
        read_mib: when it had gone out too.
        in_s: how long it took to come in.
        out_s: how long to go out.
    """

    mib: int
    before_mib: float
    stored_mib: float
    read_mib: float
    in_s: float
    out_s: float


async def measure(folder: Path, mib: int) -> Artifact:
    """Stores and reads `mib` MiB, and compares every byte.

    Args:
        folder: for storage's state, on the disk that is to be used.
        mib: at least 1.

    Raises:
        RuntimeError: storage does not start, or what came out is not what went in.
    """
    home = folder / "artifact"
    home.mkdir()
    sent = _Sent(mib)
    async with served(home, max_artifact_bytes=str(mib * MIB)) as storage:
        run = await _leased(storage)
        renewing = asyncio.create_task(_renew(storage, run))
        before, begun = storage.peak_bytes(), time.perf_counter()
        await ArtifactStoreServiceStub(storage.worker).UploadArtifact(sent.messages(run))
        stored, in_s = storage.peak_bytes(), time.perf_counter() - begun
        renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing
        await _end(storage, run, sent)
        begun = time.perf_counter()
        await _read(storage, run, sent)
        out_s = time.perf_counter() - begun
        return Artifact(mib, before / MIB, stored / MIB, storage.peak_bytes() / MIB, in_s, out_s)


class _Sent:
    """The bytes: each MiB begins with its number, so that a wrong order is seen."""

    def __init__(self, mib: int) -> None:
        self.size = mib * MIB
        self._pattern = os.urandom(MIB - _HEAD)
        digest = hashlib.sha256()
        for number in range(mib):
            digest.update(self.piece(number))
        self.sha256 = digest.digest()

    def piece(self, number: int) -> bytes:
        return number.to_bytes(_HEAD, "big") + self._pattern

    async def messages(self, run: work.Assignment) -> AsyncIterator[pb.UploadArtifactRequest]:
        header = pb.ArtifactHeader(
            executor_id=_EXECUTOR, lease=_lease(run), path=_PATH, size=self.size, sha256=self.sha256
        )
        yield pb.UploadArtifactRequest(header=header)
        for number in range(self.size // MIB):
            yield pb.UploadArtifactRequest(data=self.piece(number))


def _lease(run: work.Assignment) -> work.LeaseRef:
    return work.LeaseRef(run_id=run.run_id, epoch=run.epoch)


async def _leased(storage: Served) -> work.Assignment:
    stub = WorkServiceStub(storage.worker)
    await stub.RegisterExecutor(work.RegisterExecutorRequest(executor=played.executor(_EXECUTOR)))
    create = evaluations.CreateEvaluationRequest(tenant=played.TENANT, creator="key", spec=played.spec())
    await EvaluationStoreServiceStub(storage.gateway).CreateEvaluation(create)
    wanted = work.LeaseWorkRequest(executor_id=_EXECUTOR, since=played.SINCE, max_runs=1)
    run: work.Assignment = (await stub.LeaseWork(wanted)).assignments[0]
    return run


async def _renew(storage: Served, run: work.Assignment) -> None:
    while True:
        request = work.RenewLeasesRequest(executor_id=_EXECUTOR, leases=[_lease(run)])
        await WorkServiceStub(storage.worker).RenewLeases(request)
        await asyncio.sleep(_RENEW_SECONDS)


async def _end(storage: Served, run: work.Assignment, sent: _Sent) -> None:
    listed = ex.RunArtifact(path=_PATH, bytes_total=sent.size, bytes_kept=sent.size, sha256=sent.sha256)
    reported = played.report(run, played.finished(run, _EXECUTOR, storage.executor, b"", [listed]))
    request = work.ReportRunsRequest(executor_id=_EXECUTOR, reports=[reported])
    if refused := (await WorkServiceStub(storage.worker).ReportRuns(request)).rejected:
        raise RuntimeError(f"the report was refused: {refused[0].message}")


async def _read(storage: Served, run: work.Assignment, sent: _Sent) -> None:
    request = pb.ReadArtifactRequest(tenant=played.TENANT, evaluation=run.evaluation, path=_PATH)
    size = 0
    async for part in ArtifactStoreServiceStub(storage.gateway).ReadArtifact(request):
        if part.data != sent.piece(size // MIB):
            raise RuntimeError(f"at byte {size} of the artifact came what was not stored there")
        size += len(part.data)
    if size != sent.size:
        raise RuntimeError(f"{size} of the {sent.size} bytes of the artifact came")
