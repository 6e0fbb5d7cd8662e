"""`QueueService`: checks the request, calls `Pauses` or `DeadLetters`, converts the answer."""

from typing import Any

from crucible.storage.v1 import queue_service_pb2 as pb
from crucible.storage.v1 import queue_service_pb2_grpc as rpc
from crucible_storage import checks
from crucible_storage.dead_letters import DeadLetters
from crucible_storage.names import evaluation_name, parse_evaluation_name
from crucible_storage.pauses import Pauses

MAX_PAGE = 1000


class QueueServicer(rpc.QueueServiceServicer):
    """The queue of all tenants for the gateway."""

    def __init__(self, pauses: Pauses, dead_letters: DeadLetters, max_queued: int) -> None:
        self._pauses = pauses
        self._dead_letters = dead_letters
        self._max_queued = max_queued

    async def PauseQueue(self, request: pb.PauseQueueRequest, context: Any) -> pb.PauseQueueResponse:
        """See the contract."""
        tenant = checks.name(request.tenant, "tenant") if request.tenant else ""
        by, reason = checks.short(request.by, "by"), checks.short(request.reason, "reason")
        return pb.PauseQueueResponse(pause=await self._pauses.pause(tenant, by, reason))

    async def ResumeQueue(self, request: pb.ResumeQueueRequest, context: Any) -> pb.ResumeQueueResponse:
        """See the contract."""
        tenant = checks.name(request.tenant, "tenant") if request.tenant else ""
        return pb.ResumeQueueResponse(ended=await self._pauses.resume(tenant, checks.short(request.by, "by")))

    async def GetQueueStatus(self, request: pb.GetQueueStatusRequest, context: Any) -> pb.GetQueueStatusResponse:
        """See the contract."""
        view = await self._pauses.look()
        return pb.GetQueueStatusResponse(
            queued=view.queued,
            max_queued=self._max_queued,
            running=view.running,
            tenants=view.tenants,
            pauses=view.pauses,
            dead_letters=view.dead_letters,
        )

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Any) -> pb.ListDeadLettersResponse:
        """See the contract."""
        tenant = checks.name(request.tenant, "tenant") if request.tenant else ""
        size = checks.between(request.page_size, 1, MAX_PAGE, "page_size")
        page, token = await self._dead_letters.page(tenant, size, request.page_token, retried=request.retried)
        return pb.ListDeadLettersResponse(dead_letters=page, next_page_token=token)

    async def RetryDeadLetter(self, request: pb.RetryDeadLetterRequest, context: Any) -> pb.RetryDeadLetterResponse:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.name)
        made, before = await self._dead_letters.retry(evaluation_id, checks.short(request.by, "by"))
        return pb.RetryDeadLetterResponse(evaluation=evaluation_name(made), repeated_call=before)
