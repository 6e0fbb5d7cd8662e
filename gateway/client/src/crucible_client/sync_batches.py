"""What `Client` does with batches."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from crucible.gateway.v1 import batch_service_pb2 as api
from crucible_client import batches, calls, errors, many, streams
from crucible_client.batches import Batch, BatchItem, BatchOrder, BatchResult
from crucible_client.retry import Patience
from crucible_client.specs import EvaluationSpec
from crucible_rpc.channel import calling
from crucible_rpc.errors import CallError

R = TypeVar("R")
Items = Iterable[BatchItem | EvaluationSpec]


class BatchCalls:
    """The part of `Client` that is about batches; each as in `AsyncBatchCalls`."""

    _stubs: calls.Stubs
    _retry_for: timedelta
    _address: str
    _metadata: tuple[tuple[str, str], ...]

    def create_batch(
        self,
        items: Items,
        *,
        request_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        start_when_complete: bool = False,
        retry_for: timedelta = many.DEFAULT_RETRY_FOR,
    ) -> Batch:
        """See `AsyncClient.create_batch`."""
        segments = batches.Segments(request_id or calls.new_request_id(), labels or {}, start_when_complete)
        for item in items:
            if (full := segments.add(item)) is not None:
                self._send(full, retry_for)
        return self._send(segments.last(), retry_for)

    def run_batch(
        self,
        items: Items,
        *,
        order: BatchOrder = BatchOrder.END,
        request_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        retry_for: timedelta = many.DEFAULT_RETRY_FOR,
    ) -> Iterator[BatchResult]:
        """As `AsyncClient.run_batch`, but stores the whole batch before the first result comes."""
        batch = self.create_batch(items, request_id=request_id, labels=labels, retry_for=retry_for)
        ended = False
        try:
            for one in self.watch_batch(batch.name, order=order):
                if isinstance(one, BatchResult):
                    yield one
            ended = True
        finally:
            if not ended:
                self.cancel_batch(batch.name, reason="the caller ended the run")

    def get_batch(self, name: str) -> Batch:
        """See `AsyncClient.get_batch`."""
        return self._call(batches.get_batch(name))

    def list_batches(self, *, page_size: int = calls.PAGE_SIZE) -> Iterator[Batch]:
        """See `AsyncClient.list_batches`."""
        token = ""
        while True:
            page = self._call(batches.list_batches(page_size, token))
            yield from page.batches
            token = page.next_token
            if not token:
                return

    def cancel_batch(self, name: str, *, reason: str = "") -> Batch:
        """See `AsyncClient.cancel_batch`."""
        return self._call(batches.cancel_batch(name, reason))

    def watch_batch(
        self, name: str, *, order: BatchOrder = BatchOrder.END, after_cursor: int = 0
    ) -> Iterator[BatchResult | Batch]:
        """See `AsyncClient.watch_batch`."""
        cursor, patience = batches.BatchCursor(after_cursor), Patience(self._retry_for)
        while not cursor.ended:
            try:
                request = batches.watch_request(name, order, cursor.cursor)
                for message in self._messages(self._stubs.batches.WatchBatch, request, patience):
                    patience.renew()
                    one = cursor.accept(message)
                    if one is not None:
                        yield one
                if not cursor.ended:
                    raise streams.cut_off()
            except errors.CallError as error:
                self._pause(patience, error)

    def _send(self, segment: list[api.CreateBatchRequest], retry_for: timedelta) -> Batch:
        """One stream, sent again until it is answered."""
        patience = Patience(retry_for)
        while True:
            try:
                with calling(self._address):
                    method = self._stubs.batches.CreateBatch
                    answer = method(iter(segment), timeout=batches.SEGMENT_SECONDS, metadata=self._metadata)
                return batches.batch_value(answer.batch)
            except errors.CallError as error:
                self._pause(patience, error)

    def _call(self, call: calls.Call[R], patience: Patience | None = None) -> R:
        raise NotImplementedError

    def _messages(self, method: Any, request: Any, patience: Patience) -> Iterator[Any]:
        raise NotImplementedError

    def _pause(self, patience: Patience, error: CallError, *, waits: bool = False) -> None:
        raise NotImplementedError
