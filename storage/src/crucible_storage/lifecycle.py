"""The life of one evaluation: every rule by which its state changes, and nothing about how it is stored.

QUEUED → STARTING → RUNNING → SUCCEEDED | FAILED | CANCELLED; an infrastructure failure leads from STARTING and RUNNING
back to QUEUED. Methods change the record and note the events that tell of it; `store.save` writes both.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1 import event_pb2
from crucible.evaluation.v1.behaviour_update_pb2 import BehaviourUpdate
from crucible_rpc.errors import AbortedError
from crucible_storage.clock import micros, timestamp
from crucible_storage.names import batch_name, run_id
from crucible_storage.policy import Policy

QUEUED = int(pb.EVALUATION_STATE_QUEUED)
STARTING = int(pb.EVALUATION_STATE_STARTING)
RUNNING = int(pb.EVALUATION_STATE_RUNNING)
SUCCEEDED = int(pb.EVALUATION_STATE_SUCCEEDED)
FAILED = int(pb.EVALUATION_STATE_FAILED)
CANCELLED = int(pb.EVALUATION_STATE_CANCELLED)
HELD = frozenset({STARTING, RUNNING})
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
DELETED = 7
"""Only a tombstone is left: no state of the API, where such an evaluation does not exist."""
MAX_REASON = 1024


def storable(reason: str) -> str:
    """A reason from elsewhere as a column holds it: bounded, and without NUL, which PostgreSQL's texts lack."""
    return reason[:MAX_REASON].replace("\0", "\ufffd")


@dataclass(slots=True)
class Changes:
    """What happened to a record since it was loaded, for `store.save`."""

    events: list[event_pb2.Event] = field(default_factory=list)
    failed: list[pb.FailedAttempt] = field(default_factory=list)
    result: pb.Evaluation | None = None


@dataclass(slots=True)
class Record:
    """One evaluation. All fields but `changes` are the columns of its table, with their units.

    `blocked` is how many things a queued item of a batch still waits for; see `batch_tasks`, which alone changes it.
    """

    seq: int
    id: str
    tenant: str
    creator: str
    request_id: str | None
    spec_sha256: bytes
    run_spec_sha256: bytes
    run_spec_size: int
    runtime: str
    engine: str
    priority: int
    limits: bytes
    output_limit: int
    labels: str
    lane: str
    rank: int
    create_time: int
    batch: str | None = None
    blocked: int = 0
    state: int = QUEUED
    version: int = 1
    attempt: int = 0
    epoch: int = 0
    not_before: int | None = None
    executor: str | None = None
    boot_id: str | None = None
    lease_renewed: int | None = None
    lease_expiry: int | None = None
    lost_reason: str | None = None
    cancel_by: str | None = None
    cancel_reason: str | None = None
    cancel_time: int | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    start_time: int | None = None
    end_time: int | None = None
    behaviour_updates: int = 0
    changes: Changes = field(default_factory=Changes)

    @property
    def run_id(self) -> str:
        """Of the latest attempt."""
        return run_id(self.id, self.attempt)

    @property
    def cancel_wanted(self) -> bool:
        """Whether a caller asked to end it."""
        return self.cancel_time is not None

    @property
    def terminal(self) -> bool:
        """Whether it will never change again."""
        return self.state in TERMINAL

    def held_by(self, executor: str, epoch: int) -> bool:
        """Whether this executor holds the lease of this epoch now."""
        return self.state in HELD and self.epoch == epoch and self.executor == executor and self.lost_reason is None

    # Changes of state.

    def create(self) -> None:
        """Notes the first event."""
        told = self._tell_state(None)
        told.created.CopyFrom(
            event_pb2.EvaluationCreated(
                creator=self.creator,
                request_id=self.request_id or "",
                spec_sha256=self.spec_sha256,
                batch="" if self.batch is None else batch_name(self.batch),
            )
        )

    def lease(self, executor: str, boot_id: str, now: int, policy: Policy) -> None:
        """Gives the next attempt to a start of an executor."""
        self._expect(self.state == QUEUED)
        self.attempt += 1
        self.epoch += 1
        self.executor, self.boot_id = executor, boot_id
        self.not_before, self.start_time = None, None
        self.stdout_bytes = self.stderr_bytes = self.behaviour_updates = 0
        self.renew(now, policy)
        self._enter(STARTING)

    def renew(self, now: int, policy: Policy) -> None:
        """Extends the lease; not a change that anybody outside sees."""
        self.lease_renewed = now
        self.lease_expiry = now + micros(policy.lease)

    def start(self, time: int) -> None:
        """The program was started at `time`; told again, nothing changes."""
        self._expect(self.state in HELD)
        if self.state == STARTING:
            self.start_time = time
            self._enter(RUNNING)

    def add_output(self, chunk: event_pb2.OutputChunk) -> None:
        """Notes kept bytes that begin where the stored ones end; the caller has checked that."""
        self._expect(self.state in HELD)
        if chunk.stream == pb.OUTPUT_STREAM_STDOUT:
            self.stdout_bytes += len(chunk.data)
        else:
            self.stderr_bytes += len(chunk.data)
        self.version += 1
        self.changes.events.append(event_pb2.Event(output=chunk))

    def add_behaviour(self, update: BehaviourUpdate) -> None:
        """Notes the update that comes after the stored ones; the caller has checked that."""
        self._expect(self.state in HELD)
        self.behaviour_updates += 1
        self.version += 1
        self.changes.events.append(event_pb2.Event(behaviour=update))

    def want_cancel(self, by: str, reason: str, now: int) -> None:
        """Stores the wish to end it: a queued one ends at once; a held one when its executor says that it is gone."""
        self._expect(not self.terminal)
        if self.cancel_wanted:
            return
        self.cancel_by, self.cancel_reason, self.cancel_time = by, storable(reason), now
        self.version += 1
        told = event_pb2.CancelRequested(by=by, reason=self.cancel_reason)
        self.changes.events.append(event_pb2.Event(cancel_requested=told))
        if self.state == QUEUED:
            self.cancel(self._seen("nothing of it was running"), now, confirmed=True)

    # Ends of an attempt.

    def end(self, result: pb.Evaluation, hits: Sequence[pb.LimitHit], now: int) -> None:
        """The program's own end, or a limit's. `result` has the termination and what the executor's record says."""
        self._expect(self.state in HELD)
        for hit in hits:
            self.changes.events.append(event_pb2.Event(limit_hit=hit))
        code = result.termination.exited.code
        by_itself = result.termination.WhichOneof("kind") == "exited"
        self._finish(SUCCEEDED if by_itself and code == 0 else FAILED, result, now)

    def cancel(self, evidence: pb.Evidence, now: int, *, confirmed: bool, result: pb.Evaluation | None = None) -> None:
        """Ends it on a caller's wish. `result` has what the executor's record says, when there is one."""
        self._expect(self.cancel_wanted and not self.terminal)
        result = pb.Evaluation() if result is None else result
        by, reason = self.cancel_by or "", self.cancel_reason or ""
        cancelled = pb.Cancelled(by=by, reason=reason, confirmed=confirmed, cause=pb.CANCEL_CAUSE_REQUESTED)
        result.termination.CopyFrom(pb.Termination(cancelled=cancelled, evidence=evidence))
        self._finish(CANCELLED, result, now)

    def skip(self, dependency: str, now: int) -> None:
        """Ends it before it ever ran: `dependency`, an evaluation's name, had to succeed and did not."""
        self._expect(self.state == QUEUED and self.blocked > 0)
        cancelled = pb.Cancelled(
            reason=f"{dependency} did not succeed",
            confirmed=True,
            cause=pb.CANCEL_CAUSE_DEPENDENCY_FAILED,
            dependency=dependency,
        )
        evidence = self._seen("it was never started")
        self._finish(CANCELLED, pb.Evaluation(termination=pb.Termination(cancelled=cancelled, evidence=evidence)), now)

    def fail_attempt(self, reason: str, now: int, policy: Policy, jitter: float) -> None:
        """The infrastructure ended the attempt, and nothing of it is alive: another one later, or the end."""
        self._expect(self.state in HELD)
        reason = storable(reason)
        if self.cancel_wanted:
            self.cancel(self._seen(f"the attempt ended: {reason}"), now, confirmed=True)
            return
        failed = pb.FailedAttempt(attempt=self.attempt, reason=reason)
        failed.time.FromMicroseconds(now)
        self.changes.events.append(event_pb2.Event(attempt_failed=failed))
        if self.attempt >= policy.max_attempts:
            self.give_up(reason, now)
            return
        self.changes.failed.append(failed)
        self._requeue(now + micros(policy.backoff_after(self.attempt, jitter)))

    def give_up(self, reason: str, now: int) -> None:
        """Ends it as an infrastructure failure."""
        failure = pb.InfrastructureFailure(reason=reason[:MAX_REASON])
        tried = f"after attempt {self.attempt}" if self.attempt else "before the first attempt"
        termination = pb.Termination(infrastructure_failure=failure, evidence=self._seen(tried))
        self._finish(FAILED, pb.Evaluation(termination=termination), now)

    def refuse(self, reason: str, retry_at: int, now: int, *, permanent: bool) -> None:
        """The executor had no room for the run, or nobody should take it again: this was no attempt."""
        self._expect(self.state == STARTING)
        self.attempt -= 1
        if self.cancel_wanted:
            self.cancel(self._seen("the executor had not taken it"), now, confirmed=True)
        elif permanent:
            self.give_up(reason, now)
        else:
            self._requeue(retry_at)

    def lose(self, reason: str) -> None:
        """Nobody can say whether the run is alive: the lease is void, the attempt ends when the fence has passed."""
        self._expect(self.state in HELD)
        self.lost_reason = storable(reason)

    def expire(self, now: int, policy: Policy, jitter: float) -> None:
        """The fence has passed without a renewal, as `Sweeper` measures it: nothing of the attempt can be alive."""
        self._expect(self.state in HELD)
        reason = self.lost_reason or "the lease expired: the executor or its worker was not heard of any more"
        self.epoch += 1  # whoever still writes under the old one comes too late
        if self.cancel_wanted:
            seen = self._seen(f"{reason}; the time after which an executor ends its runs by itself has passed")
            self.cancel(seen, now, confirmed=False)
        else:
            self.fail_attempt(reason, now, policy, jitter)

    # How changes are noted.

    def _requeue(self, not_before: int) -> None:
        self.not_before = not_before
        self._release()
        self._enter(QUEUED)

    def _finish(self, state: int, result: pb.Evaluation, now: int) -> None:
        self._expect(not self.terminal)
        self.end_time = now
        self.not_before = None
        self._release()
        self.changes.result = result
        told = self._enter(state, result.termination)
        if result.provenance.HasField("record"):
            told.record_sha256 = hashlib.sha256(result.provenance.record.payload).digest()

    def _release(self) -> None:
        self.lease_renewed = self.lease_expiry = None
        self.lost_reason = None

    def _enter(self, state: int, termination: pb.Termination | None = None) -> event_pb2.StateChanged:
        self.state = state
        self.version += 1
        return self._tell_state(termination)

    def _tell_state(self, termination: pb.Termination | None) -> event_pb2.StateChanged:
        """Tells all that changed with the state: `rebuild` makes the record from what is told here."""
        event = event_pb2.Event()
        told = event.state_changed
        told.state, told.version = pb.EvaluationState.ValueType(self.state), self.version
        told.lease_epoch = self.epoch
        if termination is not None:
            told.termination.CopyFrom(termination)
        if self.state == STARTING:
            told.executor, told.boot_id = self.executor or "", self.boot_id or ""
        if self.start_time is not None:
            told.start_time.CopyFrom(timestamp(self.start_time))
        if self.not_before is not None:
            told.not_before.CopyFrom(timestamp(self.not_before))
        self.changes.events.append(event)
        return told

    def _expect(self, holds: bool) -> None:
        if not holds:
            state = pb.EvaluationState.Name(pb.EvaluationState.ValueType(self.state))
            raise AbortedError("STALE_LEASE", f"evaluations/{self.id} is {state} and cannot change in this way")

    def _seen(self, detail: str) -> pb.Evidence:
        return pb.Evidence(source=pb.EVIDENCE_SOURCE_STORAGE, detail=detail)


@dataclass(frozen=True, slots=True)
class End:
    """All that there is to tell of an evaluation that ended in its first attempt and wrote nothing before.

    Attributes:
        record: as it is stored.
        result: what the end added.
        output: what it wrote, by stream.
    """

    record: Record
    result: pb.Evaluation
    output: dict[int, bytes]
