"""`EvaluationService`: checks a request, calls `Evaluations`, converts the answer."""

from contextlib import aclosing
from datetime import timedelta
from typing import Any

from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible.gateway.v1 import evaluation_service_pb2_grpc
from crucible.monitor.v1 import monitor_service_pb2 as monitor_api
from crucible_gateway import caller, validation
from crucible_gateway.audit import Audit
from crucible_gateway.evaluations import Evaluations
from crucible_gateway.interruption import Interruption
from crucible_rpc import readers


class EvaluationServicer(evaluation_service_pb2_grpc.EvaluationServiceServicer):
    """The public evaluation RPCs.

    Args:
        evaluations: the rules.
        audit: makes receipts.
        interruption: ends waits and streams when the gateway stops.
        patience: a watcher that reads nothing for this long is ended, and what it holds at monitor with it.
    """

    def __init__(self, evaluations: Evaluations, audit: Audit, interruption: Interruption, patience: timedelta) -> None:
        self._evaluations = evaluations
        self._audit = audit
        self._interruption = interruption
        self._patience = patience

    async def CreateEvaluation(
        self, request: api.CreateEvaluationRequest, _context: Any
    ) -> api.CreateEvaluationResponse:
        """See the contract."""
        validation.check_creation(request)
        evaluation = await self._evaluations.create(caller.current(), request.request_id, request.spec)
        return api.CreateEvaluationResponse(evaluation=evaluation)

    async def RunEvaluation(self, request: api.RunEvaluationRequest, _context: Any) -> api.RunEvaluationResponse:
        """See the contract."""
        validation.check_creation(request)
        with self._interruption.waiting():
            evaluation = await self._evaluations.run(caller.current(), request.request_id, request.spec)
        return api.RunEvaluationResponse(evaluation=evaluation)

    async def GetEvaluation(self, request: api.GetEvaluationRequest, _context: Any) -> api.GetEvaluationResponse:
        """See the contract."""
        validation.check_name(request.name)
        return api.GetEvaluationResponse(evaluation=await self._evaluations.get(caller.current(), request.name))

    async def ListEvaluations(self, request: api.ListEvaluationsRequest, _context: Any) -> api.ListEvaluationsResponse:
        """See the contract."""
        validation.check_list(request)
        page = await self._evaluations.list(caller.current(), request)
        return api.ListEvaluationsResponse(evaluations=page.evaluations, next_page_token=page.next_page_token)

    async def CancelEvaluation(
        self, request: api.CancelEvaluationRequest, _context: Any
    ) -> api.CancelEvaluationResponse:
        """See the contract."""
        validation.check_cancel(request)
        evaluation = await self._evaluations.cancel(caller.current(), request.name, request.reason)
        return api.CancelEvaluationResponse(evaluation=evaluation)

    async def GetReceipt(self, request: api.GetReceiptRequest, _context: Any) -> api.GetReceiptResponse:
        """See the contract."""
        return api.GetReceiptResponse(receipt=await self._audit.receipt(caller.current(), request.name))

    async def ListUsageSamples(
        self, request: api.ListUsageSamplesRequest, _context: Any
    ) -> api.ListUsageSamplesResponse:
        """See the contract."""
        validation.check_usage_samples(request)
        found = await self._evaluations.usage_samples(caller.current(), request.name, request.attempt)
        return api.ListUsageSamplesResponse(
            attempt=found.attempt, observation=found.observation, reason=found.reason, points=found.points
        )

    async def WatchEvaluation(  # type: ignore[override]  # a coroutine that writes, which grpc.aio takes too
        self, request: api.WatchEvaluationRequest, context: Any
    ) -> None:
        """See the contract. Writes by itself, so that a write to a reader that does not read is interrupted too."""
        validation.check_watch(request)
        reached = request.after_position
        events = self._evaluations.watch(caller.current(), request.name, request.after_position)
        with self._interruption.waiting():
            async with aclosing(events) as answers:
                async for answer in answers:
                    if not await readers.write(context, watch_response(answer), self._patience):
                        readers.give_up(context, reached)
                        return
                    reached = answer.event.position or reached

    async def ReadOutput(  # type: ignore[override]  # as above
        self, request: api.ReadOutputRequest, context: Any
    ) -> None:
        """See the contract."""
        validation.check_read_output(request)
        output = self._evaluations.read_output(caller.current(), request)
        with self._interruption.waiting():
            async with aclosing(output) as answers:
                async for answer in answers:
                    await context.write(api.ReadOutputResponse(offset=answer.offset, data=answer.data))


def watch_response(answer: monitor_api.WatchResponse) -> api.WatchEvaluationResponse:
    """Monitor's answer as the public one."""
    if answer.HasField("event"):
        return api.WatchEvaluationResponse(event=answer.event)
    behind = api.FellBehind(resume_after_position=answer.fell_behind_resume_after_position)
    return api.WatchEvaluationResponse(fell_behind=behind)
