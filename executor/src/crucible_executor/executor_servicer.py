"""The executor's RPCs: each checks the request, calls `Runs`, converts the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from crucible.evaluation.v1.platform_pb2 import Executor
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1 import executor_service_pb2_grpc
from crucible_executor import convert
from crucible_executor.executor_clock import ExecutorClock
from crucible_executor.run import RunState
from crucible_executor.runs import Runs
from crucible_rpc.errors import FieldViolation, InvalidArgumentError
from crucible_rpc.identity import Permissions

MAX_RUN_IDS = 1000

_SERVICE = "/crucible.executor.v1.ExecutorService/"
_WORKER = frozenset({"worker"})
PERMISSIONS: Permissions = {
    _SERVICE + "GetExecutor": _WORKER,
    _SERVICE + "Execute": _WORKER,
    _SERVICE + "Attach": _WORKER,
    _SERVICE + "ReadArtifact": _WORKER,
    _SERVICE + "Kill": _WORKER,
    _SERVICE + "Acknowledge": _WORKER,
    _SERVICE + "ListRuns": _WORKER,
    _SERVICE + "ExtendPermits": _WORKER,
    "/crucible.executor.v1.InspectionService/RunInspection": _WORKER,
}
"""Who may call what; nobody else may call anything."""

_STATES = {
    RunState.UNKNOWN: ex.RUN_STATE_UNSPECIFIED,
    RunState.RUNNING: ex.RUN_STATE_RUNNING,
    RunState.FINISHED: ex.RUN_STATE_FINISHED,
    RunState.REFUSED: ex.RUN_STATE_REFUSED,
}


class ExecutorServicer(executor_service_pb2_grpc.ExecutorServiceServicer):
    """Speaks protobuf; the rules are in `Runs`.

    Args:
        describe: says what this executor is and offers at the moment.
        runs: its runs.
        clock: the time of this start.
    """

    def __init__(self, describe: Callable[[], Executor], runs: Runs, clock: ExecutorClock) -> None:
        self._describe = describe
        self._runs = runs
        self._clock = clock

    async def GetExecutor(self, request: ex.GetExecutorRequest, context: Any) -> ex.GetExecutorResponse:
        """See the contract."""
        return ex.GetExecutorResponse(executor=self._describe(), time=self._clock.tell())

    async def Execute(self, request: ex.ExecuteRequest, context: Any) -> AsyncIterator[ex.ExecuteResponse]:
        """See the contract."""
        run = await self._runs.accept(request.ticket, request.run_spec, convert.timedelta_of(request.permit))
        del request  # may be megabytes, and the stream is long
        async with aclosing(run.events()) as events:
            async for new in events:
                yield ex.ExecuteResponse(events=map(convert.event, new))

    async def Attach(self, request: ex.AttachRequest, context: Any) -> AsyncIterator[ex.AttachResponse]:
        """See the contract."""
        have = (request.stdout_offset, request.stderr_offset, request.behaviour_sequence, request.usage_samples)
        if min(have) < 0:
            fields = "stdout_offset, stderr_offset, behaviour_sequence, usage_samples"
            violation = FieldViolation(fields, "must not be negative")
            raise InvalidArgumentError("INVALID_FIELD", "an offset is negative", [violation])
        run = self._runs.get(request.run_id)
        async with aclosing(run.events(*have)) as events:
            async for new in events:
                yield ex.AttachResponse(events=map(convert.event, new))

    async def ReadArtifact(
        self, request: ex.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[ex.ReadArtifactResponse]:
        """See the contract."""
        async with aclosing(self._runs.get(request.run_id).read_artifact(request.path)) as pieces:
            async for data in pieces:
                yield ex.ReadArtifactResponse(data=data)

    async def Kill(self, request: ex.KillRequest, context: Any) -> ex.KillResponse:
        """See the contract."""
        return ex.KillResponse(state_before=_STATES[await self._runs.kill(request.run_id)])

    async def Acknowledge(self, request: ex.AcknowledgeRequest, context: Any) -> ex.AcknowledgeResponse:
        """See the contract."""
        await self._runs.acknowledge(_bounded(request.run_ids))
        return ex.AcknowledgeResponse()

    async def ListRuns(self, request: ex.ListRunsRequest, context: Any) -> ex.ListRunsResponse:
        """See the contract."""
        states = self._runs.states()
        return ex.ListRunsResponse(runs=[ex.Run(run_id=key, state=_STATES[state]) for key, state in states.items()])

    async def ExtendPermits(self, request: ex.ExtendPermitsRequest, context: Any) -> ex.ExtendPermitsResponse:
        """See the contract."""
        since = self._clock.read(request.since)
        not_running = self._runs.extend(_bounded(request.run_ids), convert.timedelta_of(request.permit), since)
        return ex.ExtendPermitsResponse(not_running=not_running)


def _bounded(run_ids: Sequence[str]) -> Sequence[str]:
    if len(run_ids) > MAX_RUN_IDS:
        violation = FieldViolation("run_ids", f"must be at most {MAX_RUN_IDS}")
        raise InvalidArgumentError("INVALID_FIELD", f"more than {MAX_RUN_IDS} run ids in one call", [violation])
    return run_ids
