"""Batches as plain values, and how a batch is cut into streams: one place for both clients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from crucible.evaluation.v1 import batch_pb2
from crucible.gateway.v1 import batch_service_pb2 as api
from crucible_client import calls, convert, results
from crucible_client.specs import EvaluationSpec

MAX_MESSAGE_ITEMS = 200
MAX_MESSAGE_BYTES = 1 << 20
MAX_SEGMENT_MESSAGES = 8
SEGMENT_SECONDS = 300.0
"""How long one stream may take before it is sent again."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One evaluation of a batch, and what it waits for.

    Attributes:
        spec: what to run.
        key: names the item within its batch; empty: its number. What was stored under a key is not stored again.
        after: keys of earlier items; it waits until all of them have ended.
        run_anyway: whether it runs also when one of those did not succeed; otherwise it is then skipped: it ends
            CANCELLED, and so does what waits for it.
    """

    spec: EvaluationSpec
    key: str = ""
    after: tuple[str, ...] = ()
    run_anyway: bool = False


class BatchState(StrEnum):
    """Where a batch stands; a value that this client does not know is UNKNOWN."""

    UNKNOWN = "UNKNOWN"
    OPEN = "OPEN"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    ENDED = "ENDED"


class BatchOrder(StrEnum):
    """In which order results come: as they end, or by their numbers."""

    END = "END"
    ITEM = "ITEM"


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How many items of a batch are where.

    Attributes:
        waiting: for other items, or for the batch to be complete.
        queued: for an executor.
        running: started, or about to be.
        succeeded: ended so.
        failed: ended so.
        cancelled: on request.
        skipped: never started, because what they waited for did not succeed.
    """

    waiting: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    skipped: int

    @property
    def ended(self) -> int:
        """How many have ended."""
        return self.succeeded + self.failed + self.cancelled + self.skipped


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch.

    Attributes:
        name: `batches/{uuid}`.
        tenant: whose it is.
        creator: the id of the API key that created it.
        labels: of the batch.
        start_when_complete: whether its items wait until it has them all.
        state: where it stands.
        items: how many are stored.
        progress: how many of them are where.
        create_time: when it was first stored.
        complete_time: when it had all its items; None before.
        end_time: when its last item ended; None before.
        cancel_time: when somebody asked to end it; None when nobody did.
        cancel_by: the id of the API key that asked.
        cancel_reason: what that caller gave.
    """

    name: str
    tenant: str
    creator: str
    labels: Mapping[str, str]
    start_when_complete: bool
    state: BatchState
    items: int
    progress: BatchProgress
    create_time: datetime | None
    complete_time: datetime | None
    end_time: datetime | None
    cancel_time: datetime | None
    cancel_by: str = ""
    cancel_reason: str = ""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """An item that ended.

    Attributes:
        index: its number in the batch, from 0.
        key: its key; the number when it was given none.
        evaluation: terminal, without the program's contents.
        cursor: `watch_batch(after_cursor=...)` goes on behind it in the same order.
    """

    index: int
    key: str
    evaluation: results.Evaluation
    cursor: int


@dataclass(frozen=True, slots=True)
class BatchPage:
    """One page of a list; `next_token` is empty on the last."""

    batches: tuple[Batch, ...]
    next_token: str


@dataclass(slots=True)
class Segments:
    """Cuts a batch into streams small enough to be kept until they are answered, and sent again if they break.

    Each segment is the messages of one stream: a header, some items, and in the last one the end.
    """

    request_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    start_when_complete: bool = False
    _sent: int = 0
    _full: list[api.CreateBatchRequest] = field(default_factory=list)
    _open: list[batch_pb2.BatchItem] = field(default_factory=list)
    _bytes: int = 0

    def first(self) -> list[api.CreateBatchRequest]:
        """A segment without items: it makes the batch."""
        return [self._header()]

    def add(self, item: BatchItem | EvaluationSpec) -> list[api.CreateBatchRequest] | None:
        """Takes the next item; answers a segment when one is full."""
        message = _item_message(item)
        size = message.ByteSize()
        if self._open and (len(self._open) >= MAX_MESSAGE_ITEMS or self._bytes + size > MAX_MESSAGE_BYTES):
            self._close()
        self._open.append(message)
        self._bytes += size
        return self._taken() if len(self._full) >= MAX_SEGMENT_MESSAGES else None

    def last(self) -> list[api.CreateBatchRequest]:
        """What is left, and the end."""
        self._close()
        return [*self._taken(), api.CreateBatchRequest(end=api.BatchEnd(items=self._sent))]

    def _close(self) -> None:
        if self._open:
            items = api.BatchItems(items=self._open, first_index=self._sent)
            self._full.append(api.CreateBatchRequest(items=items))
            self._sent += len(self._open)
            self._open, self._bytes = [], 0

    def _taken(self) -> list[api.CreateBatchRequest]:
        taken, self._full = [self._header(), *self._full], []
        return taken

    def _header(self) -> api.CreateBatchRequest:
        header = api.BatchHeader(
            request_id=self.request_id, labels=dict(self.labels), start_when_complete=self.start_when_complete
        )
        return api.CreateBatchRequest(header=header)


class BatchCursor:
    """How far the results of one batch have come.

    Attributes:
        cursor: of the last result; the next stream goes on behind it.
        ended: whether the batch was seen to have ended.
    """

    def __init__(self, after_cursor: int) -> None:
        self.cursor = after_cursor
        self.ended = False

    def accept(self, response: Any) -> BatchResult | Batch | None:
        """What a message of `WatchBatch` brings; None when it brings nothing that this client knows."""
        match response.WhichOneof("kind"):
            case "result":
                result = _result(response.result)
                self.cursor = result.cursor
                return result
            case "progress":
                batch = batch_value(response.progress)
                self.ended = batch.state is BatchState.ENDED
                return batch
        return None


def get_batch(name: str) -> calls.Call[Batch]:
    """`GetBatch`."""
    request = api.GetBatchRequest(name=full_name(name))
    return calls.Call(lambda stubs: stubs.batches.GetBatch, request, _answered)


def cancel_batch(name: str, reason: str) -> calls.Call[Batch]:
    """`CancelBatch`."""
    request = api.CancelBatchRequest(name=full_name(name), reason=reason)
    return calls.Call(lambda stubs: stubs.batches.CancelBatch, request, _answered)


def list_batches(page_size: int, page_token: str) -> calls.Call[BatchPage]:
    """`ListBatches`."""
    request = api.ListBatchesRequest(page_size=page_size, page_token=page_token)
    return calls.Call(
        lambda stubs: stubs.batches.ListBatches,
        request,
        lambda answer: BatchPage(tuple(batch_value(one) for one in answer.batches), answer.next_page_token),
    )


def watch_request(name: str, order: BatchOrder, after_cursor: int) -> api.WatchBatchRequest:
    """What `WatchBatch` takes."""
    number = batch_pb2.BatchOrder.Value(f"BATCH_ORDER_{order.value}")
    return api.WatchBatchRequest(name=full_name(name), order=number, after_cursor=after_cursor)


def full_name(name: str) -> str:
    """`batches/{uuid}`, also of a bare uuid."""
    return name if "/" in name else f"batches/{name}"


def batch_value(message: batch_pb2.Batch) -> Batch:
    """A batch."""
    progress = message.progress
    return Batch(
        name=message.name,
        tenant=message.tenant,
        creator=message.creator,
        labels=dict(message.labels),
        start_when_complete=message.start_when_complete,
        state=_state(message.state),
        items=message.items,
        progress=BatchProgress(
            progress.waiting,
            progress.queued,
            progress.running,
            progress.succeeded,
            progress.failed,
            progress.cancelled,
            progress.skipped,
        ),
        create_time=convert.time(message, "create_time"),
        complete_time=convert.time(message, "complete_time"),
        end_time=convert.time(message, "end_time"),
        cancel_time=convert.time(message, "cancel_time"),
        cancel_by=message.cancel_by,
        cancel_reason=message.cancel_reason,
    )


def _answered(answer: Any) -> Batch:
    return batch_value(answer.batch)


def _result(message: batch_pb2.BatchResult) -> BatchResult:
    return BatchResult(message.index, message.key, convert.evaluation(message.evaluation), message.cursor)


def _state(number: int) -> BatchState:
    if number not in batch_pb2.BatchState.values():
        return BatchState.UNKNOWN
    name = batch_pb2.BatchState.Name(number)  # type: ignore[arg-type]  # checked above
    return BatchState(name.removeprefix("BATCH_STATE_")) if number else BatchState.UNKNOWN


def _item_message(item: BatchItem | EvaluationSpec) -> batch_pb2.BatchItem:
    if isinstance(item, EvaluationSpec):
        return batch_pb2.BatchItem(spec=convert.spec_message(item))
    then = batch_pb2.ON_DEPENDENCY_FAILURE_RUN_ANYWAY if item.run_anyway else batch_pb2.ON_DEPENDENCY_FAILURE_SKIP
    return batch_pb2.BatchItem(
        key=item.key,
        spec=convert.spec_message(item.spec),
        after=item.after,
        on_failure=then if item.after else batch_pb2.ON_DEPENDENCY_FAILURE_UNSPECIFIED,
    )
