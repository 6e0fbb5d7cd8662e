"""`BatchStoreService`: checks a request, calls `Batches`, converts the answer."""

import re
from collections.abc import AsyncIterator
from typing import Any

from crucible.evaluation.v1 import batch_pb2
from crucible.storage.v1 import batch_store_service_pb2 as pb
from crucible.storage.v1 import batch_store_service_pb2_grpc as rpc
from crucible_storage import checks
from crucible_storage.batch_items import MAX_ITEMS, Item
from crucible_storage.batch_watch import BatchWatches
from crucible_storage.batches import Batches, Header
from crucible_storage.names import invalid, parse_batch_name

MAX_PART = 250
MAX_AFTER = 64
MAX_PAGE = 1000
_KEY = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9._:-]{1,128}")
_AFTER = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ORDERS = (batch_pb2.BATCH_ORDER_END, batch_pb2.BATCH_ORDER_ITEM)


class BatchStoreServicer(rpc.BatchStoreServiceServicer):
    """Batches for the gateway."""

    def __init__(self, batches: Batches, watches: BatchWatches) -> None:
        self._batches = batches
        self._watches = watches

    async def OpenBatch(self, request: pb.OpenBatchRequest, context: Any) -> pb.OpenBatchResponse:
        """See the contract."""
        header = Header(
            tenant=checks.name(request.tenant, "tenant"),
            creator=checks.short(request.creator, "creator"),
            request_id=checks.name(request.request_id, "request_id"),
            labels=checks.labels(request.labels, "labels"),
            start_when_complete=request.start_when_complete,
        )
        return pb.OpenBatchResponse(batch=await self._batches.open(header))

    async def AddBatchItems(self, request: pb.AddBatchItemsRequest, context: Any) -> pb.AddBatchItemsResponse:
        """See the contract."""
        batch_id = parse_batch_name(request.name)
        creator = checks.short(request.creator, "creator")
        first = checks.between(request.first_index, 0, MAX_ITEMS, "first_index")
        checks.at_most(request.items, MAX_PART, "items")
        items = [_item(one, first + n, request.tenant, creator) for n, one in enumerate(request.items)]
        return pb.AddBatchItemsResponse(items=await self._batches.add(request.tenant, batch_id, items))

    async def CompleteBatch(self, request: pb.CompleteBatchRequest, context: Any) -> pb.CompleteBatchResponse:
        """See the contract."""
        batch_id = parse_batch_name(request.name)
        items = checks.between(request.items, 0, MAX_ITEMS, "items")
        return pb.CompleteBatchResponse(batch=await self._batches.complete(request.tenant, batch_id, items))

    async def GetBatch(self, request: pb.GetBatchRequest, context: Any) -> pb.GetBatchResponse:
        """See the contract."""
        return pb.GetBatchResponse(batch=await self._batches.get(request.tenant, parse_batch_name(request.name)))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: Any) -> pb.ListBatchesResponse:
        """See the contract."""
        size = checks.between(request.page_size, 1, MAX_PAGE, "page_size")
        page, token = await self._batches.page(request.tenant, size, request.page_token)
        return pb.ListBatchesResponse(batches=page, next_page_token=token)

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: Any) -> pb.CancelBatchResponse:
        """See the contract."""
        batch_id = parse_batch_name(request.name)
        by, reason = checks.short(request.by, "by"), checks.short(request.reason, "reason")
        return pb.CancelBatchResponse(batch=await self._batches.cancel(request.tenant, batch_id, by, reason))

    async def WatchBatch(self, request: pb.WatchBatchRequest, context: Any) -> AsyncIterator[pb.WatchBatchResponse]:
        """See the contract."""
        batch_id = parse_batch_name(request.name)
        if request.order not in _ORDERS:
            raise invalid("order", "must be END or ITEM")
        after = checks.between(request.after_cursor, 0, (1 << 62) - 1, "after_cursor")
        async for one in self._watches.watch(request.tenant, batch_id, request.order, after):
            if isinstance(one, batch_pb2.BatchResult):
                yield pb.WatchBatchResponse(result=one)
            else:
                yield pb.WatchBatchResponse(progress=one)


def _item(message: batch_pb2.BatchItem, number: int, tenant: str, creator: str) -> Item:
    field = f"items[{number}]"
    if message.key and not _KEY.fullmatch(message.key):
        raise invalid(f"{field}.key", "must be at most 128 characters of [A-Za-z0-9._:-], not digits alone")
    checks.at_most(message.after, MAX_AFTER, f"{field}.after")
    for place, key in enumerate(message.after):
        if not _AFTER.fullmatch(key):
            raise invalid(f"{field}.after[{place}]", "must be the key of an earlier item of the batch")
    if message.on_failure not in batch_pb2.OnDependencyFailure.values():
        raise invalid(f"{field}.on_failure", "must be SKIP or RUN_ANYWAY")
    checks.spec(message.spec)
    return Item.of(message, number, tenant, creator)
