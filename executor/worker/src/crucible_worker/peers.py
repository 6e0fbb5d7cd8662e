"""What the worker needs of the two processes it calls; all of it raises `crucible_rpc.errors.CallError`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from typing import Protocol

from crucible.evaluation.v1.platform_pb2 import Executor
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import artifact_store_service_pb2 as artifacts
from crucible.storage.v1 import work_service_pb2 as work


class StoragePeer(Protocol):
    """Storage's work."""

    async def register(self, executor: Executor) -> work.RegisterExecutorResponse:
        """See `WorkService.RegisterExecutor`."""
        ...

    async def lease(
        self, executor_id: str, since: ex.ExecutorTime, max_runs: int, wait: timedelta
    ) -> Sequence[work.Assignment]:
        """See `WorkService.LeaseWork`."""
        ...

    async def renew(self, executor_id: str, leases: Sequence[work.LeaseRef]) -> work.RenewLeasesResponse:
        """See `WorkService.RenewLeases`."""
        ...

    async def report(
        self, executor_id: str, reports: Sequence[work.RunReport], since: ex.ExecutorTime | None, max_runs: int
    ) -> work.ReportRunsResponse:
        """See `WorkService.ReportRuns`; leases up to `max_runs` with it (0: none, and `since` is not looked at)."""
        ...

    async def upload(
        self, header: artifacts.ArtifactHeader, data: AsyncIterator[bytes], patience: float
    ) -> artifacts.UploadArtifactResponse:
        """See `ArtifactStoreService.UploadArtifact`; what `data` raises ends the call and is raised.

        Args:
            header: what is sent.
            data: its bytes.
            patience: seconds for which storage may say that it has them already, before any is sent.
        """
        ...

    def stops(self, executor_id: str) -> AsyncIterator[work.WatchStopsResponse]:
        """See `WorkService.WatchStops`."""
        ...


class ExecutorPeer(Protocol):
    """The executor beside this worker."""

    async def get(self) -> ex.GetExecutorResponse:
        """See `ExecutorService.GetExecutor`."""
        ...

    def execute(self, assignment: work.Assignment, permit: timedelta) -> AsyncIterator[ex.RunEvent]:
        """See `ExecutorService.Execute`."""
        ...

    def attach(
        self, run_id: str, stdout_offset: int, stderr_offset: int, behaviour_sequence: int, usage_samples: int
    ) -> AsyncIterator[ex.RunEvent]:
        """See `ExecutorService.Attach`."""
        ...

    def read_artifact(self, run_id: str, path: str) -> AsyncGenerator[bytes, None]:
        """See `ExecutorService.ReadArtifact`."""
        ...

    async def kill(self, run_id: str) -> ex.RunState.ValueType:
        """See `ExecutorService.Kill`."""
        ...

    async def acknowledge(self, run_ids: Sequence[str]) -> None:
        """See `ExecutorService.Acknowledge`."""
        ...

    async def list_runs(self) -> Sequence[ex.Run]:
        """See `ExecutorService.ListRuns`."""
        ...

    async def extend(self, run_ids: Sequence[str], permit: timedelta, since: ex.ExecutorTime) -> None:
        """See `ExecutorService.ExtendPermits`."""
        ...
