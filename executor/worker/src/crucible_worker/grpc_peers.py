"""The two peers over gRPC."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from crucible.evaluation.v1.platform_pb2 import Executor
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from crucible.storage.v1 import artifact_store_service_pb2 as artifacts
from crucible.storage.v1 import work_service_pb2 as work
from crucible.storage.v1.artifact_store_service_pb2_grpc import ArtifactStoreServiceStub
from crucible.storage.v1.work_service_pb2_grpc import WorkServiceStub

_CALL_SECONDS = 10.0
_KILL_SECONDS = 30.0
_UPLOAD_SECONDS = 60.0
_LEAST_BYTES_PER_SECOND = 1 << 20


class GrpcStorage:
    """`StoragePeer` over a channel of `crucible_rpc.channel.connect`."""

    def __init__(self, channel: Any) -> None:
        self._stub: Any = WorkServiceStub(channel)
        self._artifacts: Any = ArtifactStoreServiceStub(channel)

    async def register(self, executor: Executor) -> work.RegisterExecutorResponse:
        """See `StoragePeer`."""
        request = work.RegisterExecutorRequest(executor=executor)
        answer: work.RegisterExecutorResponse = await self._stub.RegisterExecutor(request, timeout=_CALL_SECONDS)
        return answer

    async def lease(
        self, executor_id: str, since: ex.ExecutorTime, max_runs: int, wait: timedelta
    ) -> Sequence[work.Assignment]:
        """See `StoragePeer`."""
        request = work.LeaseWorkRequest(executor_id=executor_id, since=since, max_runs=max_runs, wait=_duration(wait))
        answer = await self._stub.LeaseWork(request, timeout=wait.total_seconds() + _CALL_SECONDS)
        return list(answer.assignments)

    async def renew(self, executor_id: str, leases: Sequence[work.LeaseRef]) -> work.RenewLeasesResponse:
        """See `StoragePeer`."""
        request = work.RenewLeasesRequest(executor_id=executor_id, leases=leases)
        answer: work.RenewLeasesResponse = await self._stub.RenewLeases(request, timeout=_CALL_SECONDS)
        return answer

    async def report(
        self, executor_id: str, reports: Sequence[work.RunReport], since: ex.ExecutorTime | None, max_runs: int
    ) -> work.ReportRunsResponse:
        """See `StoragePeer`."""
        request = work.ReportRunsRequest(executor_id=executor_id, reports=reports)
        if max_runs:
            wish = work.LeaseMore(since=since, max_runs=max_runs, request_id=secrets.token_hex(8))
            request.lease.CopyFrom(wish)
        answer: work.ReportRunsResponse = await self._stub.ReportRuns(request, timeout=_CALL_SECONDS)
        return answer

    async def upload(
        self, header: artifacts.ArtifactHeader, data: AsyncIterator[bytes], patience: float
    ) -> artifacts.UploadArtifactResponse:
        """See `StoragePeer`."""
        call = self._artifacts.UploadArtifact(timeout=_UPLOAD_SECONDS + header.size / _LEAST_BYTES_PER_SECOND)
        answer = asyncio.ensure_future(_answer(call))
        try:
            await call.write(artifacts.UploadArtifactRequest(header=header))
            await asyncio.wait([answer], timeout=patience)
            async for piece in data:
                if answer.done():
                    break
                await call.write(artifacts.UploadArtifactRequest(data=piece))
            await call.done_writing()
            return await answer
        except asyncio.InvalidStateError:
            return await answer  # it was over before a write, and its answer says how
        finally:
            call.cancel()  # of no effect when it is over
            await asyncio.wait([answer])
            if not answer.cancelled():
                answer.exception()  # what was raised above says it already

    def stops(self, executor_id: str) -> AsyncIterator[work.WatchStopsResponse]:
        """See `StoragePeer`."""
        call = self._stub.WatchStops(work.WatchStopsRequest(executor_id=executor_id))
        return call.__aiter__()  # type: ignore[no-any-return]


class GrpcExecutor:
    """`ExecutorPeer` over a channel of `crucible_rpc.channel.connect`."""

    def __init__(self, channel: Any) -> None:
        self._stub: Any = ExecutorServiceStub(channel)

    async def get(self) -> ex.GetExecutorResponse:
        """See `ExecutorPeer`."""
        answer: ex.GetExecutorResponse = await self._stub.GetExecutor(ex.GetExecutorRequest(), timeout=_CALL_SECONDS)
        return answer

    async def execute(self, assignment: work.Assignment, permit: timedelta) -> AsyncIterator[ex.RunEvent]:
        """See `ExecutorPeer`."""
        request = ex.ExecuteRequest(ticket=assignment.ticket, run_spec=assignment.run_spec, permit=_duration(permit))
        async for response in self._stub.Execute(request):
            for event in response.events:
                yield event

    async def attach(
        self, run_id: str, stdout_offset: int, stderr_offset: int, behaviour_sequence: int, usage_samples: int
    ) -> AsyncIterator[ex.RunEvent]:
        """See `ExecutorPeer`."""
        request = ex.AttachRequest(
            run_id=run_id,
            stdout_offset=stdout_offset,
            stderr_offset=stderr_offset,
            behaviour_sequence=behaviour_sequence,
            usage_samples=usage_samples,
        )
        async for response in self._stub.Attach(request):
            for event in response.events:
                yield event

    async def read_artifact(self, run_id: str, path: str) -> AsyncGenerator[bytes, None]:
        """See `ExecutorPeer`."""
        async for response in self._stub.ReadArtifact(ex.ReadArtifactRequest(run_id=run_id, path=path)):
            yield response.data

    async def kill(self, run_id: str) -> ex.RunState.ValueType:
        """See `ExecutorPeer`."""
        answer = await self._stub.Kill(ex.KillRequest(run_id=run_id), timeout=_KILL_SECONDS)
        state: ex.RunState.ValueType = answer.state_before
        return state

    async def acknowledge(self, run_ids: Sequence[str]) -> None:
        """See `ExecutorPeer`."""
        await self._stub.Acknowledge(ex.AcknowledgeRequest(run_ids=run_ids), timeout=_CALL_SECONDS)

    async def list_runs(self) -> Sequence[ex.Run]:
        """See `ExecutorPeer`."""
        answer = await self._stub.ListRuns(ex.ListRunsRequest(), timeout=_CALL_SECONDS)
        return list(answer.runs)

    async def extend(self, run_ids: Sequence[str], permit: timedelta, since: ex.ExecutorTime) -> None:
        """See `ExecutorPeer`."""
        request = ex.ExtendPermitsRequest(run_ids=run_ids, permit=_duration(permit), since=since)
        await self._stub.ExtendPermits(request, timeout=_CALL_SECONDS)


async def _answer(call: Any) -> artifacts.UploadArtifactResponse:
    answer: artifacts.UploadArtifactResponse = await call
    return answer


def _duration(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message
