"""`BatchService`: checks a request, calls `Batches`, converts the answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from crucible.gateway.v1 import batch_service_pb2 as api
from crucible.gateway.v1 import batch_service_pb2_grpc
from crucible.storage.v1 import batch_store_service_pb2 as store
from crucible_gateway import batch_validation as validation
from crucible_gateway import caller
from crucible_gateway.batches import Batches
from crucible_gateway.interruption import Interruption
from crucible_rpc import readers


class BatchServicer(batch_service_pb2_grpc.BatchServiceServicer):
    """The public batch RPCs.

    Args:
        batches: the rules.
        interruption: ends streams when the gateway stops.
        patience: a watcher that reads nothing for this long is ended.
    """

    def __init__(self, batches: Batches, interruption: Interruption, patience: timedelta) -> None:
        self._batches = batches
        self._interruption = interruption
        self._patience = patience

    async def CreateBatch(
        self, request_iterator: AsyncIterator[api.CreateBatchRequest], _context: Any
    ) -> api.CreateBatchResponse:
        """See the contract."""
        with self._interruption.waiting():
            batch = await self._batches.create(caller.current(), aiter(request_iterator))
        return api.CreateBatchResponse(batch=batch)

    async def GetBatch(self, request: api.GetBatchRequest, _context: Any) -> api.GetBatchResponse:
        """See the contract."""
        validation.check_name(request.name)
        return api.GetBatchResponse(batch=await self._batches.get(caller.current(), request.name))

    async def ListBatches(self, request: api.ListBatchesRequest, _context: Any) -> api.ListBatchesResponse:
        """See the contract."""
        validation.check_list(request)
        page = await self._batches.list(caller.current(), request)
        return api.ListBatchesResponse(batches=page.batches, next_page_token=page.next_page_token)

    async def CancelBatch(self, request: api.CancelBatchRequest, _context: Any) -> api.CancelBatchResponse:
        """See the contract."""
        validation.check_cancel(request)
        batch = await self._batches.cancel(caller.current(), request.name, request.reason)
        return api.CancelBatchResponse(batch=batch)

    async def WatchBatch(  # type: ignore[override]  # a coroutine that writes, which grpc.aio takes too
        self, request: api.WatchBatchRequest, context: Any
    ) -> None:
        """See the contract. Writes by itself, so that a write to a reader that does not read is interrupted too."""
        validation.check_watch(request)
        reached = request.after_cursor
        with self._interruption.waiting():
            async with aclosing(self._batches.watch(caller.current(), request)) as answers:
                async for answer in answers:
                    if not await readers.write(context, _watch_response(answer), self._patience):
                        readers.give_up(context, reached)
                        return
                    reached = answer.result.cursor or reached


def _watch_response(answer: store.WatchBatchResponse) -> api.WatchBatchResponse:
    if answer.HasField("result"):
        return api.WatchBatchResponse(result=answer.result)
    return api.WatchBatchResponse(progress=answer.progress)
