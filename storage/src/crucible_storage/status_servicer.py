"""`StatusService`: calls `Executors` and `Evaluations`, converts the answer."""

from typing import Any

from crucible.storage.v1 import status_service_pb2 as pb
from crucible.storage.v1 import status_service_pb2_grpc as rpc
from crucible_storage import convert
from crucible_storage.evaluations import Evaluations
from crucible_storage.executors import Executors


class StatusServicer(rpc.StatusServiceServicer):
    """What storage knows of executors and of the queue, for the gateway."""

    def __init__(self, executors: Executors, evaluations: Evaluations, max_attempts: int) -> None:
        self._executors = executors
        self._evaluations = evaluations
        self._max_attempts = max_attempts

    async def ListExecutors(self, request: pb.ListExecutorsRequest, context: Any) -> pb.ListExecutorsResponse:
        """See the contract."""
        listed = await self._executors.list()
        executors = [convert.executor(one) for one in listed]
        return pb.ListExecutorsResponse(executors=executors, max_attempts=self._max_attempts)

    async def GetQueue(self, request: pb.GetQueueRequest, context: Any) -> pb.GetQueueResponse:
        """See the contract."""
        return convert.queue(await self._evaluations.counts(request.tenant))
