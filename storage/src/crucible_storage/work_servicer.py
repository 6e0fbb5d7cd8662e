"""`WorkService`: checks the request, calls `Leases` or `Reports`, converts the answer."""

from collections.abc import AsyncIterator
from typing import Any

from crucible.storage.v1 import work_service_pb2 as pb
from crucible.storage.v1 import work_service_pb2_grpc as rpc
from crucible_storage import checks, convert
from crucible_storage.clock import duration
from crucible_storage.leases import Leases
from crucible_storage.names import invalid
from crucible_storage.policy import Policy
from crucible_storage.reports import Reports, warn_of

MAX_RUNS = 1000
MAX_WAIT_SECONDS = 60.0
MAX_EXECUTOR_BYTES = 256 << 10
MAX_REPORT_BYTES = 4 << 20


class WorkServicer(rpc.WorkServiceServicer):
    """Work for executors."""

    def __init__(self, leases: Leases, reports: Reports, policy: Policy) -> None:
        self._leases = leases
        self._reports = reports
        self._policy = policy

    async def RegisterExecutor(self, request: pb.RegisterExecutorRequest, context: Any) -> pb.RegisterExecutorResponse:
        """See the contract."""
        checks.name(request.executor.id, "executor.id")
        checks.name(request.executor.boot_id, "executor.boot_id")
        if request.executor.ByteSize() > MAX_EXECUTOR_BYTES:
            raise invalid("executor", f"must have at most {MAX_EXECUTOR_BYTES} bytes")
        held = await self._leases.register(request.executor)
        return pb.RegisterExecutorResponse(
            leases=[convert.lease(one) for one in held],
            lease_duration=duration(self._policy.lease),
            orphan_grace=duration(self._policy.orphan_grace),
        )

    async def LeaseWork(self, request: pb.LeaseWorkRequest, context: Any) -> pb.LeaseWorkResponse:
        """See the contract."""
        max_runs = checks.between(request.max_runs, 1, MAX_RUNS, "max_runs")
        wait = checks.seconds(request.wait, MAX_WAIT_SECONDS, "wait")
        since = checks.executor_time(request.since, "since")
        given = await self._leases.lease(request.executor_id, since, max_runs, wait)
        return pb.LeaseWorkResponse(assignments=given)

    async def RenewLeases(self, request: pb.RenewLeasesRequest, context: Any) -> pb.RenewLeasesResponse:
        """See the contract."""
        leases = checks.at_most(request.leases, MAX_RUNS, "leases")
        lost, stops = await self._leases.renew(request.executor_id, leases)
        return pb.RenewLeasesResponse(lost=lost, stops=stops)

    async def ReportRuns(self, request: pb.ReportRunsRequest, context: Any) -> pb.ReportRunsResponse:
        """See the contract."""
        reports = checks.at_most(request.reports, MAX_RUNS, "reports")
        if request.ByteSize() > MAX_REPORT_BYTES:
            raise invalid("reports", "must together have at most 3 MiB")
        if not request.HasField("lease"):
            return pb.ReportRunsResponse(rejected=await self._reports.store(request.executor_id, reports))
        checks.between(request.lease.max_runs, 1, MAX_RUNS, "lease.max_runs")
        checks.name(request.lease.request_id, "lease.request_id")
        checks.executor_time(request.lease.since, "lease.since")
        storing = self._reports.storing(request.executor_id, reports)
        rejected, given = await self._leases.after(storing, request.executor_id, request.lease)
        warn_of(rejected)
        return pb.ReportRunsResponse(rejected=rejected, assignments=given)

    async def WatchStops(self, request: pb.WatchStopsRequest, context: Any) -> AsyncIterator[pb.WatchStopsResponse]:
        """See the contract."""
        executor = checks.name(request.executor_id, "executor_id")
        async for stops in self._leases.stops(executor):
            yield convert.stops(stops)
