"""What `AsyncClient` does with batches."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Any, TypeVar

from crucible.gateway.v1 import batch_service_pb2 as api
from crucible_client import batches, calls, errors, many, streams
from crucible_client.batches import Batch, BatchItem, BatchOrder, BatchResult
from crucible_client.retry import Patience
from crucible_client.specs import EvaluationSpec
from crucible_rpc.errors import CallError

R = TypeVar("R")
Items = AsyncIterable[BatchItem | EvaluationSpec] | Iterable[BatchItem | EvaluationSpec]


class AsyncBatchCalls:
    """The part of `AsyncClient` that is about batches."""

    _stubs: calls.Stubs
    _retry_for: timedelta

    async def create_batch(
        self,
        items: Items,
        *,
        request_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        start_when_complete: bool = False,
        retry_for: timedelta = many.DEFAULT_RETRY_FOR,
    ) -> Batch:
        """Stores a batch and returns it, complete; `items` are taken as they are needed, some megabytes at a time.

        Args:
            items: at most 100,000; bare specs are items without key and dependencies.
            request_id: goes on with a batch that was begun with the same id: what is stored is not stored twice.
            labels: of the batch.
            start_when_complete: nothing runs before all is stored. Default: each item as soon as it is.
            retry_for: how long a server that is away, or whose queue is full, is borne.
        """
        segments = batches.Segments(request_id or calls.new_request_id(), labels or {}, start_when_complete)
        return await self._fill(segments, items, retry_for)

    async def run_batch(
        self,
        items: Items,
        *,
        order: BatchOrder = BatchOrder.END,
        request_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        retry_for: timedelta = many.DEFAULT_RETRY_FOR,
    ) -> AsyncGenerator[BatchResult, None]:
        """Stores a batch and yields its results while it is still being stored; see `create_batch` for the arguments.

        Leaving the loop early cancels the batch. Results that came in an earlier run with this `request_id` come again.
        """
        segments = batches.Segments(request_id or calls.new_request_id(), labels or {})
        name = (await self._send(segments.first(), retry_for)).name
        filling = asyncio.create_task(self._fill(segments, items, retry_for))
        ended = False
        try:
            async with aclosing(self.watch_batch(name, order=order)) as watching:
                async for one in _unless_failed(watching, filling):
                    if isinstance(one, BatchResult):
                        yield one
            ended = True
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
            if not ended:
                await self._abandon(name)

    async def get_batch(self, name: str) -> Batch:
        """The batch as it is now; names are `batches/{uuid}` or the uuid alone."""
        return await self._call(batches.get_batch(name))

    async def list_batches(self, *, page_size: int = calls.PAGE_SIZE) -> AsyncGenerator[Batch, None]:
        """This tenant's batches, newest first; fetches pages as they are needed."""
        token = ""
        while True:
            page = await self._call(batches.list_batches(page_size, token))
            for batch in page.batches:
                yield batch
            token = page.next_token
            if not token:
                return

    async def cancel_batch(self, name: str, *, reason: str = "") -> Batch:
        """Records the wish to end all items of a batch; all have ended when `watch_batch` or `get_batch` says so."""
        return await self._call(batches.cancel_batch(name, reason))

    async def watch_batch(
        self, name: str, *, order: BatchOrder = BatchOrder.END, after_cursor: int = 0
    ) -> AsyncGenerator[BatchResult | Batch, None]:
        """Results, past ones first, and between them how far the batch is; the last is the batch, ended.

        Goes on by cursor when the server is away for less than `retry_for`: nothing is lost and nothing comes twice.

        Args:
            name: the batch.
            order: as they end, or by their numbers.
            after_cursor: of the last result that is known, in the same order; 0: from the beginning.
        """
        cursor, patience = batches.BatchCursor(after_cursor), Patience(self._retry_for)
        while not cursor.ended:
            try:
                request = batches.watch_request(name, order, cursor.cursor)
                async with aclosing(streams.messages(self._stubs.batches.WatchBatch(request))) as messages:
                    async for message in messages:
                        patience.renew()
                        one = cursor.accept(message)
                        if one is not None:
                            yield one
                if not cursor.ended:
                    raise streams.cut_off()
            except errors.CallError as error:
                await self._pause(patience, error)

    async def _fill(self, segments: batches.Segments, items: Items, retry_for: timedelta) -> Batch:
        async for item in _each(items):
            if (full := segments.add(item)) is not None:
                await self._send(full, retry_for)
        return await self._send(segments.last(), retry_for)

    async def _send(self, segment: list[api.CreateBatchRequest], retry_for: timedelta) -> Batch:
        """One stream, sent again until it is answered."""
        patience = Patience(retry_for)
        while True:
            try:
                answer = await self._stubs.batches.CreateBatch(iter(segment), timeout=batches.SEGMENT_SECONDS)
                return batches.batch_value(answer.batch)
            except errors.CallError as error:
                await self._pause(patience, error)

    async def _abandon(self, name: str) -> None:
        with suppress(TimeoutError, errors.CallError):
            async with asyncio.timeout(many.ABANDON_SECONDS):
                await self.cancel_batch(name, reason="the caller ended the run")

    async def _call(self, call: calls.Call[R], patience: Patience | None = None) -> R:
        raise NotImplementedError

    async def _pause(self, patience: Patience, error: CallError, *, waits: bool = False) -> None:
        raise NotImplementedError


async def _each(items: Items) -> AsyncIterator[BatchItem | EvaluationSpec]:
    if isinstance(items, AsyncIterable):
        async for one in items:
            yield one
    else:
        for one in items:
            yield one


async def _unless_failed(source: AsyncIterator[R], other: "asyncio.Task[Any]") -> AsyncIterator[R]:
    """What `source` brings, until it ends or `other` fails, whose error is raised then."""
    while True:
        following = asyncio.ensure_future(anext(source, None))
        try:
            while not following.done():
                await asyncio.wait(
                    {following, other} if not other.done() else {following}, return_when="FIRST_COMPLETED"
                )
                if other.done() and (error := other.exception()) is not None:
                    raise error
        finally:
            if not following.done():
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        one = following.result()
        if one is None:
            return
        yield one
