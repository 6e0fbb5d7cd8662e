"""What callers do with batches: a stream of items into storage, part by part, and what they ask of it afterwards."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from crucible.evaluation.v1 import batch_pb2 as ev
from crucible.gateway.v1 import batch_service_pb2 as api
from crucible.storage.v1 import batch_store_service_pb2 as store
from crucible_gateway import batch_validation as validation
from crucible_gateway.caller import Caller
from crucible_gateway.executors import Executors
from crucible_gateway.limits import Defaults
from crucible_gateway.validation import DEFAULT_PAGE_SIZE
from crucible_rpc import logs
from crucible_rpc.errors import (
    CallError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    UnavailableError,
)

MAX_PART = 200
MAX_PART_BYTES = 2 << 20
MAX_STRETCH = 20
"""Items that are looked at without letting other calls go on."""


class BatchStore(Protocol):
    """What is needed of storage."""

    async def open_batch(self, request: store.OpenBatchRequest) -> ev.Batch: ...  # noqa: D102
    async def add_items(self, request: store.AddBatchItemsRequest) -> int: ...  # noqa: D102
    async def complete_batch(self, request: store.CompleteBatchRequest) -> ev.Batch: ...  # noqa: D102
    async def get_batch(self, tenant: str, name: str) -> ev.Batch: ...  # noqa: D102
    async def list_batches(self, request: store.ListBatchesRequest) -> store.ListBatchesResponse: ...  # noqa: D102
    async def cancel_batch(self, request: store.CancelBatchRequest) -> ev.Batch: ...  # noqa: D102
    def watch_batch(self, request: store.WatchBatchRequest) -> AsyncGenerator[store.WatchBatchResponse, None]: ...  # noqa: D102


class Batches:
    """A caller's batches.

    Args:
        storage: where they are kept.
        executors: what could run their items.
        defaults: for what a spec does not say.
        patience: a stream that brings nothing for this long is ended.
    """

    def __init__(self, storage: BatchStore, executors: Executors, defaults: Defaults, patience: timedelta) -> None:
        self._storage = storage
        self._executors = executors
        self._defaults = defaults
        self._patience = patience

    async def create(self, caller: Caller, messages: AsyncIterator[api.CreateBatchRequest]) -> ev.Batch:
        """Stores what a stream brings; at most one of its messages is held at a time.

        Raises:
            InvalidArgumentError: INVALID_FIELD, for the first message with something wrong; those before it are stored.
            UnavailableError: STREAM_STALLED.
            CallError: what `limits.complete` and storage say.
        """
        stream = _Patient(messages, self._patience)
        header = validation.header(await stream.next())
        batch = await self._storage.open_batch(
            store.OpenBatchRequest(
                tenant=caller.tenant,
                creator=caller.key_id,
                # A call to storage whose answer got lost is sent again; without an id that would make a second batch.
                request_id=header.request_id or f"auto.{secrets.token_hex(16)}",
                labels=header.labels,
                start_when_complete=header.start_when_complete,
            )
        )
        logs.bind(batch=batch.name)
        with _naming(batch.name):
            return await self._fill(caller, batch, stream)

    async def _fill(self, caller: Caller, batch: ev.Batch, stream: "_Patient") -> ev.Batch:
        following = 0
        while (message := await stream.next()) is not None:
            kind = message.WhichOneof("kind")
            if kind == "end":
                total = validation.end(message.end)
                done = await self._storage.complete_batch(
                    store.CompleteBatchRequest(tenant=caller.tenant, name=batch.name, items=total)
                )
                await stream.expect_nothing()
                return done
            first = validation.items(message, following)
            await self._add(caller, batch.name, first, message.items.items)
            following = first + len(message.items.items)
        return await self._storage.get_batch(caller.tenant, batch.name)

    async def _add(self, caller: Caller, name: str, first: int, items: Sequence[ev.BatchItem]) -> None:
        """Checks and completes all items of a message before any of them is stored."""
        for number, item in enumerate(items, first):
            validation.check_item(item, number)
            with _item(number, item.key):
                await self._executors.complete(item.spec, self._defaults)
            if number % MAX_STRETCH == 0:
                await asyncio.sleep(0)  # a large message must not hold up everybody else's calls
        for start, part in _parts(first, items):
            await self._storage.add_items(
                store.AddBatchItemsRequest(
                    tenant=caller.tenant, name=name, creator=caller.key_id, first_index=start, items=part
                )
            )

    async def get(self, caller: Caller, name: str) -> ev.Batch:
        """One batch as it is now."""
        logs.bind(batch=name)
        return await self._storage.get_batch(caller.tenant, name)

    async def list(self, caller: Caller, request: api.ListBatchesRequest) -> store.ListBatchesResponse:
        """A page, newest first."""
        return await self._storage.list_batches(
            store.ListBatchesRequest(
                tenant=caller.tenant, page_size=request.page_size or DEFAULT_PAGE_SIZE, page_token=request.page_token
            )
        )

    async def cancel(self, caller: Caller, name: str, reason: str) -> ev.Batch:
        """Records the wish to end a batch; an ended one is returned unchanged."""
        logs.bind(batch=name)
        request = store.CancelBatchRequest(tenant=caller.tenant, name=name, by=caller.key_id, reason=reason)
        return await self._storage.cancel_batch(request)

    def watch(self, caller: Caller, request: api.WatchBatchRequest) -> AsyncGenerator[store.WatchBatchResponse, None]:
        """Results after a cursor and how far the batch is, until it has ended."""
        logs.bind(batch=request.name)
        return self._storage.watch_batch(
            store.WatchBatchRequest(
                tenant=caller.tenant,
                name=request.name,
                order=request.order or ev.BATCH_ORDER_END,
                after_cursor=request.after_cursor,
            )
        )


class _Patient:
    """The messages of a caller's stream, each waited for so long and no longer."""

    def __init__(self, messages: AsyncIterator[api.CreateBatchRequest], patience: timedelta) -> None:
        self._messages = messages
        self._patience = patience.total_seconds()

    async def next(self) -> api.CreateBatchRequest | None:
        """The next message; None when there is none."""
        try:
            async with asyncio.timeout(self._patience):
                return await anext(self._messages, None)
        except TimeoutError:
            text = "nothing came on this stream for too long; what came is stored: send it again with its request_id"
            raise UnavailableError("STREAM_STALLED", text, retry_after=timedelta(0)) from None

    async def expect_nothing(self) -> None:
        """The last message was `end`."""
        if await self.next() is not None:
            raise InvalidArgumentError("INVALID_FIELD", "nothing may follow `end`", [FieldViolation("end", "is last")])


def _parts(first: int, items: Sequence[ev.BatchItem]) -> Iterator[tuple[int, list[ev.BatchItem]]]:
    """Parts that storage takes in one transaction, each with the number of its first item."""
    part: list[ev.BatchItem] = []
    size = 0
    for number, item in enumerate(items, first):
        length = item.ByteSize()
        if part and (len(part) >= MAX_PART or size + length > MAX_PART_BYTES):
            yield number - len(part), part
            part, size = [], 0
        part.append(item)
        size += length
    if part:
        yield first + len(items) - len(part), part


@contextmanager
def _item(number: int, key: str) -> Iterator[None]:
    """Inside the block, what is wrong with a spec is told as what is wrong with this item."""
    try:
        yield
    except InvalidArgumentError as error:
        raise validation.of_item(error, number, key) from error
    except FailedPreconditionError as error:
        if "field" in error.metadata:
            error.metadata["field"] = f"items[{number}].{error.metadata['field']}"
        error.metadata["key"] = key or str(number)
        raise


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors inside say which batch there is, so that it can be looked at, gone on with or cancelled."""
    try:
        yield
    except CallError as error:
        error.metadata.setdefault("batch", name)
        raise
