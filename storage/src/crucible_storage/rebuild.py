"""An evaluation's state made again from its events alone, and nothing about how they are stored.

Also holds the events themselves to the rules of `lifecycle`: what no order of calls could have written is a
`HistoryError`. What is not in the events is the lease's clock (`lease_renewed`, `lease_expiry`, `lost_reason`): it
changes with every renewal and is worth nothing once the lease is gone.
"""

import hashlib
from dataclasses import dataclass, field

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.event_pb2 import EvaluationCreated, EvaluationDeleted, Event, OutputChunk, StateChanged
from crucible_storage.clock import from_timestamp
from crucible_storage.lifecycle import CANCELLED, DELETED, HELD, QUEUED, RUNNING, STARTING, TERMINAL

_FOLLOWS = {
    QUEUED: frozenset({0, STARTING, RUNNING}),
    STARTING: frozenset({QUEUED}),
    RUNNING: frozenset({STARTING}),
} | {state: frozenset({QUEUED, STARTING, RUNNING}) for state in TERMINAL}


class HistoryError(Exception):
    """The events contradict each other; the text says which and how, without the evaluation's name."""


@dataclass(slots=True)
class Stream:
    """What one attempt wrote to one stream.

    Attributes:
        length: bytes.
        digest: of these, when all of them were `here`.
        here: whether no chunk came without its bytes.
    """

    length: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    here: bool = True

    def add(self, chunk: OutputChunk, elsewhere: int) -> None:
        """Takes the next bytes, which must begin where the last ones ended; so many of them are elsewhere."""
        if chunk.offset != self.length:
            stream = pb.OutputStream.Name(chunk.stream)
            raise HistoryError(f"output of {stream} begins at {chunk.offset}, where {self.length} was expected")
        self.length += len(chunk.data) + elsewhere
        self.digest.update(chunk.data)
        self.here &= not elsewhere


@dataclass(slots=True)
class Rebuilt:
    """One evaluation, as far as the events taken so far tell. Times are microseconds since 1970.

    Attributes:
        complete_after: events up to this position were written by a version that told less.
        untold: names of attributes that such events left open.
        failed: attempts that the infrastructure ended and after which another was allowed.
        streams: by attempt and stream.
        removed: how many events are emptied, because the evaluation was deleted.
    """

    complete_after: int = 0
    state: int = 0
    version: int = 0
    attempt: int = 0
    epoch: int = 0
    created: EvaluationCreated | None = None
    create_time: int = 0
    executor: str | None = None
    boot_id: str | None = None
    not_before: int | None = None
    start_time: int | None = None
    end_time: int | None = None
    cancel_by: str | None = None
    cancel_reason: str | None = None
    cancel_time: int | None = None
    behaviour_updates: int = 0
    termination: pb.Termination | None = None
    record_sha256: bytes = b""
    failed: list[pb.FailedAttempt] = field(default_factory=list)
    limit_hits: list[pb.LimitHit] = field(default_factory=list)
    streams: dict[tuple[int, int], Stream] = field(default_factory=dict)
    deleted: EvaluationDeleted | None = None
    delete_time: int | None = None
    removed: int = 0
    untold: set[str] = field(default_factory=set)
    _failing: pb.FailedAttempt | None = None

    def take(self, event: Event, elsewhere: int = 0) -> None:
        """Goes on by one event.

        Args:
            event: the next one.
            elsewhere: how many bytes its output has, when they are in the artifact store and not in the event.

        Raises:
            HistoryError: it cannot come after those before it.
        """
        kind = event.WhichOneof("kind")
        if kind is None:
            raise HistoryError("an event says nothing")
        if self.state in TERMINAL or self.state == DELETED:
            raise HistoryError(f"{kind} after the end")
        if kind in ("removed", "deleted"):
            self._take_deletion(event, kind)
            return
        if self.removed:
            raise HistoryError(f"{kind} after events that were deleted")
        if kind == "state_changed":
            self._take_state(event, event.state_changed)
            return
        if not self.state or event.attempt != self.attempt:
            raise HistoryError(f"{kind} of attempt {event.attempt} while attempt {self.attempt} was the latest")
        if kind == "cancel_requested":
            self._take_cancel(event)
        elif self.state not in HELD:
            raise HistoryError(f"{kind} while nothing was running")
        elif kind == "output":
            self.version += 1
            self.stream(event.output.stream).add(event.output, elsewhere)
        elif kind == "behaviour":
            self.version += 1
            self.behaviour_updates += 1
            if event.behaviour.sequence != self.behaviour_updates:
                raise HistoryError(f"behaviour update {event.behaviour.sequence} came as the {self.behaviour_updates}.")
        elif kind == "attempt_failed":
            self._failing = event.attempt_failed
        elif kind == "limit_hit":
            self.limit_hits.append(event.limit_hit)

    def stream(self, number: int) -> Stream:
        """What the latest attempt wrote to a stream."""
        return self.streams.setdefault((self.attempt, number), Stream())

    def _take_cancel(self, event: Event) -> None:
        if self.cancel_time is not None:
            raise HistoryError("a second cancel was stored")
        self.version += 1
        told = event.cancel_requested
        self.cancel_by, self.cancel_reason, self.cancel_time = told.by, told.reason, from_timestamp(event.time)

    def _take_state(self, event: Event, told: StateChanged) -> None:
        state, name = int(told.state), pb.EvaluationState.Name(told.state)
        if self.state not in _FOLLOWS.get(state, ()):
            raise HistoryError(f"{name} cannot come after {pb.EvaluationState.Name(self._state_value())}")
        self.version += 1
        if told.version != self.version:
            raise HistoryError(f"{name} has version {told.version}, where {self.version} was expected")
        self._take_attempt(event, state, name)
        if event.position > self.complete_after:
            self._check_complete(told, state, name)
        self._take_facts(event, told, state)
        self.state = state

    def _take_attempt(self, event: Event, state: int, name: str) -> None:
        """The attempt that a change of state leads to, and why another one was allowed."""
        if state == STARTING:
            if event.attempt != self.attempt + 1:
                raise HistoryError(f"attempt {event.attempt} came after attempt {self.attempt}")
            if self.attempt and (not self.failed or self.failed[-1].attempt != self.attempt):
                raise HistoryError(f"attempt {event.attempt} without a recorded failure of the one before")
        elif event.attempt == self.attempt - 1 and self.state == STARTING and self._failing is None:
            pass  # refused: that was no attempt
        elif event.attempt != self.attempt:
            raise HistoryError(f"{name} of attempt {event.attempt} while attempt {self.attempt} was the latest")
        elif state == QUEUED and self.state in HELD:
            if self._failing is None or self._failing.attempt != self.attempt:
                raise HistoryError(f"attempt {self.attempt} was given up without a recorded failure")
            self.failed.append(self._failing)
        self.attempt = event.attempt
        self._failing = None

    def _check_complete(self, told: StateChanged, state: int, name: str) -> None:
        if not self.state and not told.HasField("created"):
            raise HistoryError("the first event does not tell what was created")
        if state == STARTING and not (told.executor and told.boot_id and told.lease_epoch):
            raise HistoryError("STARTING does not tell who holds the lease")
        if state == RUNNING and not told.HasField("start_time"):
            raise HistoryError("RUNNING does not tell when the program was started")
        if told.lease_epoch < self.epoch:
            raise HistoryError(f"{name} has lease epoch {told.lease_epoch} after {self.epoch}")

    def _take_facts(self, event: Event, told: StateChanged, state: int) -> None:
        if not self.state:
            self.create_time = from_timestamp(event.time)
            self.created = told.created if told.HasField("created") else None
        self._note("epoch", told.lease_epoch, told=event.position > self.complete_after)
        if state == STARTING:
            self._note("executor", told.executor, told=bool(told.executor))
            self._note("boot_id", told.boot_id, told=bool(told.boot_id))
            self.behaviour_updates = 0
        self._take_start(event, told, state)
        self.not_before = from_timestamp(told.not_before) if told.HasField("not_before") else None
        if state in TERMINAL:
            self.end_time = from_timestamp(event.time)
            self.record_sha256 = told.record_sha256
            if event.position <= self.complete_after:
                self.untold.add("record_sha256")
            self.termination = told.termination if told.HasField("termination") else None
            if state == CANCELLED:
                self._check_cancelled(told)

    def _check_cancelled(self, told: StateChanged) -> None:
        """Somebody wished it, or what an item of a batch waited for did not succeed."""
        if told.termination.cancelled.cause != pb.CANCEL_CAUSE_DEPENDENCY_FAILED:
            if self.cancel_time is None:
                raise HistoryError("CANCELLED without a stored wish to cancel")
        elif self.state != QUEUED or self.attempt or self.cancel_time is not None:
            raise HistoryError("CANCELLED for a dependency after it could have started")
        elif self.created is not None and not self.created.batch:
            raise HistoryError("CANCELLED for a dependency, and it is no item of a batch")

    def _take_start(self, event: Event, told: StateChanged, state: int) -> None:
        """When the program was started. What told less never did, but a new attempt has not started yet."""
        if event.position > self.complete_after or not self.state or state == STARTING:
            start = from_timestamp(told.start_time) if told.HasField("start_time") else None
            self._note("start_time", start, told=True)
        elif state == RUNNING:
            self._note("start_time", None, told=False)

    def _note(self, name: str, value: object, *, told: bool) -> None:
        setattr(self, name, value)
        if told:
            self.untold.discard(name)
        else:
            self.untold.add(name)

    def _take_deletion(self, event: Event, kind: str) -> None:
        if self.state:
            raise HistoryError(f"{kind} after events that were not deleted")
        if kind == "removed":
            self.removed += 1
            return
        if not self.removed or int(event.deleted.state) not in TERMINAL:
            raise HistoryError("a deletion of what had not ended")
        self.state = DELETED
        self.deleted = event.deleted
        self.delete_time = from_timestamp(event.time)
        self.version, self.attempt = event.deleted.version, event.attempt

    def _state_value(self) -> pb.EvaluationState.ValueType:
        return pb.EvaluationState.ValueType(self.state)
