"""What workers report of runs: every report is checked against its lease and stored, or refused by itself."""

import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.behaviour_update_pb2 import BehaviourUpdate
from crucible.evaluation.v1.event_pb2 import OutputChunk
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import logs
from crucible_rpc.errors import AbortedError, CallError, InvalidArgumentError
from crucible_rpc.signing import Verifier
from crucible_storage import behaviour_updates, faults, final_records, outputs, store, usage_samples
from crucible_storage.artifacts import references
from crucible_storage.clock import Clock, from_timestamp
from crucible_storage.database import Database
from crucible_storage.lifecycle import STARTING, Record
from crucible_storage.names import parse_run_id
from crucible_storage.policy import Policy
from crucible_storage.transaction import WriteTransaction

MAX_CHUNK = 64 << 10
_MIN_RETRY = 50_000  # µs: a refused run does not come back in a tight loop
_MAX_RETRY = 600_000_000
_PATIENT_REFUSALS = 10
_MAX_REPEATED_RETRY = 60_000_000
_MAX_SECONDS = 253_402_300_799  # the end of the year 9999
_LOG = logging.getLogger(__name__)
_STREAMS = (pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR)


@dataclass(slots=True)
class _Checked:
    """A report with its final record, verified outside the writer."""

    report: work.RunReport
    final: ex.FinalRecord | None = None
    refused: CallError | None = None


class Reports:
    """Stores batches of reports.

    Args:
        database: where.
        verifier: knows the executors' keys.
        policy: attempts and waits.
        clock: for what storage records.
        jitter: a number from 0 to 1.
    """

    def __init__(
        self,
        database: Database,
        verifier: Verifier,
        policy: Policy,
        clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._verifier = verifier
        self._policy = policy
        self._clock = clock
        self._jitter = jitter

    async def store(self, executor: str, reports: Sequence[work.RunReport]) -> list[work.RejectedReport]:
        """Stores reports in order, in one transaction; answers those that were refused. The rest is durable."""
        refused = await self._database.write(self.storing(executor, reports))
        warn_of(refused)
        return refused

    def storing(
        self, executor: str, reports: Sequence[work.RunReport]
    ) -> Callable[[WriteTransaction], list[work.RejectedReport]]:
        """The operation that does what `store` does; the costly checks are done here, outside the writer."""
        checked = [self._check(report) for report in reports]

        def run(transaction: WriteTransaction) -> list[work.RejectedReport]:
            known = _known(transaction, checked)
            answers = (self._store_one(transaction, executor, one, known) for one in checked)
            return [refused for refused in answers if refused is not None]

        return run

    def _check(self, report: work.RunReport) -> _Checked:
        """Does what needs no database: the signature is the costly part."""
        checked = _Checked(report)
        try:
            for number, event in enumerate(report.events):
                kind = event.WhichOneof("kind")
                if kind == "finished":
                    if number != len(report.events) - 1 or report.WhichOneof("outcome") is not None:
                        raise _invalid("nothing can come after `finished`")
                    checked.final = final_records.verified(event.finished, self._verifier)
                elif kind == "output":
                    _check_chunk(event.output)
                elif kind == "behaviour":
                    behaviour_updates.check(event.behaviour)
                elif kind == "usage_samples":
                    usage_samples.check(event.usage_samples)
                elif kind is None:
                    raise _invalid("an event must say what happened")
        except CallError as error:
            checked.refused = error
        return checked

    def _store_one(
        self, transaction: WriteTransaction, executor: str, checked: _Checked, known: dict[str, Record]
    ) -> work.RejectedReport | None:
        run_id = checked.report.lease.run_id
        try:
            with transaction.savepoint():
                self._apply(transaction, executor, checked, known)
        except CallError as error:
            return work.RejectedReport(run_id=run_id, reason=error.reason, message=error.message)
        except Exception as error:
            if faults.ends_transaction(error):
                raise
            # A fault of ours with this report. If the call failed for it, it would be sent again for ever, and hold up
            # all other runs of that worker.
            _LOG.exception("a report could not be stored", extra=logs.fields(run=run_id))
            return work.RejectedReport(run_id=run_id, reason="INTERNAL", message="storage failed; its log says why")
        return None

    def _apply(self, transaction: WriteTransaction, executor: str, checked: _Checked, known: dict[str, Record]) -> None:
        """Applies a report. `known` has records as they were read before the first: each holds for one report."""
        if checked.refused is not None:
            raise checked.refused
        report = checked.report
        name = parse_run_id(report.lease.run_id)
        record = None if name is None else known.pop(name.evaluation_id, None)
        if record is None and name is not None:  # it had a report before
            record = store.load(transaction.connection, name.evaluation_id, to_change=True)
        if record is None or name is None or name.attempt > record.attempt + 1:
            raise _stale(report)
        if record.executor == executor and record.epoch == report.lease.epoch and not record.lease_renewed:
            return  # the same end was reported before and its answer was lost
        if not record.held_by(executor, report.lease.epoch) or record.attempt != name.attempt:
            raise _stale(report)
        now = self._clock.now()
        before = store.Before(record)
        one = _OneReport(transaction, record, now, self._policy, self._jitter)
        one.apply(report, checked.final)
        if record.version != before.version or record.lost_reason:
            store.save(transaction, record, before, now)


def _known(transaction: WriteTransaction, reports: Sequence[_Checked]) -> dict[str, Record]:
    """The records of these reports, by one statement; none of them where one cannot be read, for that fails alone."""
    names = [parse_run_id(one.report.lease.run_id) for one in reports if one.refused is None]
    try:
        with transaction.savepoint():
            return store.load_all(transaction.connection, list({name.evaluation_id: None for name in names if name}))
    except Exception as error:
        if faults.ends_transaction(error):
            raise
        _LOG.warning("the records of some reports are read one by one", exc_info=error)
        return {}


class _OneReport:
    """Applies one report to the record of its run."""

    def __init__(
        self, transaction: WriteTransaction, record: Record, now: int, policy: Policy, jitter: Callable[[], float]
    ) -> None:
        self._transaction = transaction
        self._record = record
        self._now = now
        self._policy = policy
        self._jitter = jitter
        self._new: dict[int, list[bytes]] = {int(stream): [] for stream in _STREAMS}
        self._had_output = bool(record.stdout_bytes or record.stderr_bytes)

    def apply(self, report: work.RunReport, final: ex.FinalRecord | None) -> None:
        for event in report.events:
            kind = event.WhichOneof("kind")
            if kind == "started":
                self._record.start(_time(event.started.time))
            elif kind == "output":
                self._output(event.output)
            elif kind == "behaviour":
                self._behaviour(event.behaviour)
            elif kind == "usage_samples":
                self._record.start(self._now)  # as with output
                usage_samples.add(self._transaction, self._record, event.usage_samples, self._now)
            elif final is not None:
                self._finish(final, event.finished)
        outcome = report.WhichOneof("outcome")
        if outcome == "refused":
            self._refuse(report.refused)
        elif outcome == "lost":
            self._lose(report.lost)

    def _output(self, chunk: ex.RunOutputChunk) -> None:
        """Adds what of a chunk is not stored yet; a gap, or more than the spec allows, is refused."""
        record = self._record
        record.start(self._now)  # only when the start was not reported; the final record corrects the time
        stored = self._stored(int(chunk.stream))
        if chunk.offset > stored:
            raise _invalid(f"output is missing: {stored} bytes are stored, the chunk begins at {chunk.offset}")
        fresh = chunk.data[stored - chunk.offset :]
        if not fresh:
            return
        if stored + len(fresh) > record.output_limit:
            raise _invalid(f"more output than the {record.output_limit} bytes that the spec keeps of a stream")
        record.add_output(OutputChunk(stream=chunk.stream, offset=stored, data=fresh))
        self._new[int(chunk.stream)].append(fresh)

    def _behaviour(self, update: BehaviourUpdate) -> None:
        """Adds an update that is not stored yet; a gap is refused."""
        record = self._record
        record.start(self._now)  # as with output
        stored = record.behaviour_updates
        if update.sequence > stored + 1:
            raise _invalid(f"behaviour updates are missing: {stored} are stored, this is number {update.sequence}")
        if update.sequence > stored:
            record.add_behaviour(update)

    def _finish(self, final: ex.FinalRecord, signed: SignedBytes) -> None:
        record = self._record
        final_records.check_is_of(final, record)
        self._transaction.usage.computed(record.tenant, self._now, final_records.cpu_micros(final))
        if final_records.ended_by_itself(final):
            self._check_kept(final)
            self._correct_start(final)
            record.end(final_records.result(final, signed), final.limit_hits, self._now)
        elif record.cancel_wanted and final_records.killed_on_request(final):
            self._check_kept(final)
            self._correct_start(final)
            result = final_records.result(final, signed)
            record.cancel(final.termination.evidence, self._now, confirmed=True, result=result)
        else:
            record.fail_attempt(final_records.failure(final), self._now, self._policy, self._jitter())

    def _correct_start(self, final: ex.FinalRecord) -> None:
        """The signed record knows best when the program was started, if it was."""
        if final.HasField("start_time"):
            time = _time(final.start_time)
            self._record.start(time)
            self._record.start_time = time

    def _check_kept(self, final: ex.FinalRecord) -> None:
        self._check_outputs(final)
        if final.artifacts:
            references.confirm(self._transaction, self._record, final.artifacts)

    def _check_outputs(self, final: ex.FinalRecord) -> None:
        """The stored output must be what the executor signed."""
        for stream, said in ((pb.OUTPUT_STREAM_STDOUT, final.stdout), (pb.OUTPUT_STREAM_STDERR, final.stderr)):
            stored = self._stored(int(stream))
            if stored < said.bytes_kept:
                raise _invalid(f"output is missing: {stored} of {said.bytes_kept} bytes are stored; attach again")
            if stored == said.bytes_kept == 0:
                continue
            if stored > said.bytes_kept or self._sha256(int(stream)) != said.sha256:
                raise final_records.invalid("the stored output is not what the final record was signed for")

    def _refuse(self, refused: work.Refused) -> None:
        record = self._record
        if record.state != STARTING:
            raise _invalid("a run that was started cannot be refused; report it as lost")
        if refused.failed_attempt and not refused.permanent:
            reason = refused.reason or "the executor refused the run"
            record.fail_attempt(reason, self._now, self._policy, self._jitter())
            return
        asked = max(refused.retry_after.ToMicroseconds(), _MIN_RETRY)
        # What is refused again and again waits longer and longer: each time is a lease and two events of the log.
        often = min(max(0, record.epoch - record.attempt - _PATIENT_REFUSALS), 20)
        retry_at = self._now + min(max(asked, min(asked << often, _MAX_REPEATED_RETRY)), _MAX_RETRY)
        outputs.as_of_the_attempt_before(self._transaction.settled(record.seq), record)
        record.refuse(refused.reason, retry_at, self._now, permanent=refused.permanent)

    def _lose(self, lost: work.RunLost) -> None:
        reason = lost.reason or "the worker lost the run"
        if lost.confirmed_gone:
            self._record.fail_attempt(reason, self._now, self._policy, self._jitter())
        else:
            self._record.lose(reason)

    def _stored(self, stream: int) -> int:
        return self._record.stdout_bytes if stream == pb.OUTPUT_STREAM_STDOUT else self._record.stderr_bytes

    def _sha256(self, stream: int) -> bytes:
        if not self._had_output:  # what a short run wrote came with its end: it need not be read back
            return hashlib.sha256(b"".join(self._new[stream])).digest()
        record = self._record
        connection = self._transaction.settled(record.seq)
        return outputs.sha256(connection, record.seq, record.attempt, stream, self._new[stream])


def warn_of(refused: Sequence[work.RejectedReport]) -> None:
    """Logs the reports that were refused."""
    for one in refused:
        _LOG.warning("a report was refused: %s", one.message, extra=logs.fields(run=one.run_id, reason=one.reason))


def _check_chunk(chunk: ex.RunOutputChunk) -> None:
    if chunk.stream not in _STREAMS:
        raise _invalid("output must name its stream")
    if chunk.offset < 0 or len(chunk.data) > MAX_CHUNK:
        raise _invalid(f"a chunk begins at 0 or later and has at most {MAX_CHUNK} bytes")


def _time(message: Timestamp) -> int:
    if not 0 <= message.seconds <= _MAX_SECONDS or not 0 <= message.nanos < 1_000_000_000:
        raise _invalid("a time must lie between the years 1970 and 9999")
    return from_timestamp(message)


def _invalid(message: str) -> InvalidArgumentError:
    return InvalidArgumentError("INVALID_FIELD", message)


def _stale(report: work.RunReport) -> AbortedError:
    return AbortedError(
        "STALE_LEASE", f"the lease of run {report.lease.run_id[:64]} under epoch {report.lease.epoch} is not held"
    )
