"""`EvaluationStoreService`: checks the request, calls `Evaluations` or `Lists`, converts the answer."""

from collections.abc import AsyncIterator
from typing import Any

from crucible.storage.v1 import evaluation_store_service_pb2 as pb
from crucible.storage.v1 import evaluation_store_service_pb2_grpc as rpc
from crucible_storage import checks
from crucible_storage.clock import timestamp
from crucible_storage.deletion import Deletion
from crucible_storage.evaluations import Evaluations, Wanted
from crucible_storage.lists import Filter, Lists
from crucible_storage.names import parse_batch_name, parse_evaluation_name
from crucible_storage.usage_samples import Samples

MAX_PAGE = 1000
MAX_WAIT_SECONDS = 60.0
_MAX_OFFSET = 1 << 50
_LAST_STATE = 6


class EvaluationStoreServicer(rpc.EvaluationStoreServiceServicer):
    """Evaluations for the gateway."""

    def __init__(self, evaluations: Evaluations, lists: Lists, deletion: Deletion, samples: Samples) -> None:
        self._evaluations = evaluations
        self._lists = lists
        self._deletion = deletion
        self._samples = samples

    async def CreateEvaluation(self, request: pb.CreateEvaluationRequest, context: Any) -> pb.CreateEvaluationResponse:
        """See the contract."""
        tenant = checks.name(request.tenant, "tenant")
        request_id = checks.short(request.request_id, "request_id")
        creator = checks.short(request.creator, "creator")
        wait = checks.seconds(request.wait, MAX_WAIT_SECONDS, "wait")
        wanted = Wanted.of(tenant, creator, request_id, checks.spec(request.spec))
        return pb.CreateEvaluationResponse(evaluation=await self._evaluations.create_and_wait(wanted, wait))

    async def GetEvaluation(self, request: pb.GetEvaluationRequest, context: Any) -> pb.GetEvaluationResponse:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.name)
        return pb.GetEvaluationResponse(evaluation=await self._evaluations.get(request.tenant, evaluation_id))

    async def WaitEvaluation(self, request: pb.WaitEvaluationRequest, context: Any) -> pb.WaitEvaluationResponse:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.name)
        seconds = checks.seconds(request.wait, MAX_WAIT_SECONDS, "wait")
        evaluation = await self._evaluations.wait(request.tenant, evaluation_id, seconds)
        return pb.WaitEvaluationResponse(evaluation=evaluation)

    async def ListEvaluations(self, request: pb.ListEvaluationsRequest, context: Any) -> pb.ListEvaluationsResponse:
        """See the contract."""
        states = [checks.between(state, 1, _LAST_STATE, "states") for state in request.states]
        batch = parse_batch_name(request.batch, "batch") if request.batch else ""
        wanted = Filter(request.tenant, states, checks.labels(request.labels, "labels"), batch)
        size = checks.between(request.page_size, 1, MAX_PAGE, "page_size")
        page, token = await self._lists.page(wanted, size, request.page_token)
        return pb.ListEvaluationsResponse(evaluations=page, next_page_token=token)

    async def CancelEvaluation(self, request: pb.CancelEvaluationRequest, context: Any) -> pb.CancelEvaluationResponse:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.name)
        by, reason = checks.short(request.by, "by"), checks.short(request.reason, "reason")
        evaluation = await self._evaluations.cancel(request.tenant, evaluation_id, by, reason)
        return pb.CancelEvaluationResponse(evaluation=evaluation)

    async def ReadOutput(self, request: pb.ReadOutputRequest, context: Any) -> AsyncIterator[pb.ReadOutputResponse]:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.name)
        stream = checks.stream(request.stream, "stream")
        first = checks.between(request.offset, 0, _MAX_OFFSET, "offset")
        attempt = checks.between(request.attempt, 0, 1 << 30, "attempt")
        parts = self._evaluations.read_output(request.tenant, evaluation_id, stream, first, attempt)
        async for offset, data in parts:
            yield pb.ReadOutputResponse(offset=offset, data=data)

    async def ListUsageSamples(self, request: pb.ListUsageSamplesRequest, context: Any) -> pb.ListUsageSamplesResponse:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.name)
        attempt = checks.between(request.attempt, 0, 1 << 30, "attempt")
        return await self._samples.list(request.tenant, evaluation_id, attempt)

    async def DeleteEvaluation(self, request: pb.DeleteEvaluationRequest, context: Any) -> pb.DeleteEvaluationResponse:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.name)
        by, reason = checks.short(request.by, "by"), checks.short(request.reason, "reason")
        deleted = await self._deletion.delete(evaluation_id, by, reason)
        return pb.DeleteEvaluationResponse(
            tenant=deleted.tenant, deleted=deleted.left, delete_time=timestamp(deleted.time)
        )
