"""One evaluation: its row, and what its other tables hold, against the fold of its events. Pure functions."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.executor.v1.executor_service_pb2 import FinalRecord, RunSpec
from crucible_rpc.errors import CallError
from crucible_rpc.signing import Verifier
from crucible_storage import final_records
from crucible_storage.artifacts.references import Kept, same
from crucible_storage.clock import from_timestamp
from crucible_storage.evaluations import spec_sha256
from crucible_storage.lifecycle import CANCELLED, DELETED, HELD, QUEUED, SUCCEEDED, TERMINAL, Record
from crucible_storage.names import batch_name
from crucible_storage.rebuild import Rebuilt

_STREAMS = ((pb.OUTPUT_STREAM_STDOUT, "stdout"), (pb.OUTPUT_STREAM_STDERR, "stderr"))
_TOLD = (
    "state",
    "version",
    "attempt",
    "epoch",
    "executor",
    "boot_id",
    "create_time",
    "start_time",
    "end_time",
    "cancel_by",
    "cancel_reason",
    "cancel_time",
    "behaviour_updates",
)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the tables hold of one evaluation.

    Attributes:
        record: its row.
        program: the serialized `RunSpec`; None: there is none.
        result: the serialized end; None: there is none.
        failed: attempt, reason and time of each failed attempt, in order.
        labels: of the table of labels.
        artifacts: of its latest attempt, those that are marked as listed by its signed record.
        objects: size and SHA-256 of the object of each large output that has one, by attempt and stream.
    """

    record: Record
    program: bytes | None
    result: bytes | None
    failed: Sequence[tuple[int, str, int]]
    labels: Mapping[str, str]
    artifacts: Sequence[Kept] = ()
    objects: Mapping[tuple[int, int], tuple[int, bytes]] = field(default_factory=dict)


def faults(stored: Stored, rebuilt: Rebuilt, verifier: Verifier) -> Iterator[str]:
    """All that does not fit together, one line each, without the evaluation's name."""
    record = stored.record
    if record.state == DELETED or rebuilt.state == DELETED:
        yield from _deleted(stored, rebuilt)
        return
    for name in _TOLD:
        said, told = getattr(record, name), getattr(rebuilt, name)
        if name not in rebuilt.untold and said != told:
            yield f"its row has {name} {_short(said)}, its events tell {_short(told)}"
    for number, name in _STREAMS:
        said, told = getattr(record, f"{name}_bytes"), rebuilt.stream(number).length
        if said != told:
            yield f"its row has {said} bytes of {name}, its events have {told}"
    failed = [(one.attempt, one.reason, from_timestamp(one.time)) for one in rebuilt.failed]
    if list(stored.failed) != failed:
        yield f"{len(stored.failed)} failed attempts are stored, its events tell {len(failed)}, or they differ"
    yield from _moved(stored, rebuilt)
    yield from _lease(record, rebuilt)
    yield from _spec(stored, rebuilt)
    yield from _end(stored, rebuilt, verifier)


def _deleted(stored: Stored, rebuilt: Rebuilt) -> Iterator[str]:
    record = stored.record
    if record.state != rebuilt.state:
        what = "deleted" if record.state == DELETED else "there"
        yield f"its row says that it is {what}, its events tell otherwise"
        return
    if (record.version, record.attempt) != (rebuilt.version, rebuilt.attempt):
        yield f"it was deleted at version {rebuilt.version}, its row has version {record.version}"
    if stored.program is not None or stored.result is not None or stored.failed or stored.labels:
        yield "it was deleted, and something of it is left"
    if stored.artifacts:
        yield "it was deleted, and artifacts of it are left"
    if stored.objects:
        yield "it was deleted, and output of it is left in the artifact store"


def _moved(stored: Stored, rebuilt: Rebuilt) -> Iterator[str]:
    """Large output: what is not in the database is an object, and what is in both is the same."""
    names = dict(_STREAMS)
    for (attempt, number), stream in rebuilt.streams.items():
        where = f"{names[pb.OutputStream.ValueType(number)]} of attempt {attempt}"
        there = stored.objects.get((attempt, number))
        if there is None:
            if not stream.here:
                yield f"its {where} is neither in the database nor in the artifact store"
        elif there[0] != stream.length or (stream.here and there[1] != stream.digest.digest()):
            yield f"its {where} was moved to an object that has other bytes"
    for attempt, number in sorted(stored.objects.keys() - rebuilt.streams.keys()):
        yield f"output of attempt {attempt} was moved, and no event tells of any of stream {number}"


def _lease(record: Record, rebuilt: Rebuilt) -> Iterator[str]:
    held = record.state in HELD
    if held != (record.lease_renewed is not None) or held != (record.lease_expiry is not None):
        yield "a lease is noted exactly while one is held; here it is not so"
    if record.lost_reason is not None and not held:
        yield "a lost lease is noted, and none is held"
    if record.not_before is not None and (record.state != QUEUED or record.not_before != rebuilt.not_before):
        yield "it waits for a time that its events do not tell"


def _spec(stored: Stored, rebuilt: Rebuilt) -> Iterator[str]:
    record = stored.record
    if stored.program is None:
        yield "its program is missing"
        return
    if len(stored.program) != record.run_spec_size or _sha256(stored.program) != record.run_spec_sha256:
        yield "its program is not the one whose digest was stored"
        return
    run_spec = RunSpec.FromString(stored.program)
    if (run_spec.engine, run_spec.program.runtime) != (record.engine, record.runtime):
        yield "its row names another engine or runtime than its program"
    labels = json.loads(record.labels)
    if labels != stored.labels:
        yield "its labels are not those that lists are made by"
    limits = pb.Limits.FromString(record.limits)
    if spec_sha256(record.run_spec_sha256, limits, record.priority, labels) != record.spec_sha256:
        yield "its limits, priority or labels are not those whose digest was stored"
    created = rebuilt.created
    if created is not None:
        said = (record.creator, record.request_id or "", record.spec_sha256, _batch(record))
        if said != (created.creator, created.request_id, created.spec_sha256, created.batch):
            yield "its creator, request id, spec or batch is not what its first event tells"


def _end(stored: Stored, rebuilt: Rebuilt, verifier: Verifier) -> Iterator[str]:
    record = stored.record
    if stored.result is None or record.state not in TERMINAL:
        if record.state in TERMINAL:
            yield "it has ended, and its result is missing"
        elif stored.result is not None:
            yield "it has a result before its end"
        if stored.artifacts:
            yield "its artifacts are marked as listed by a signed record that is not there"
        return
    end = pb.Evaluation.FromString(stored.result)
    if end.termination != rebuilt.termination:
        yield "its result has another termination than its last event tells"
    if _state_of(end.termination) not in (None, record.state):
        yield f"its state is not what its termination ({end.termination.WhichOneof('kind')}) leads to"
    if not end.provenance.HasField("record"):
        if rebuilt.record_sha256 or end != pb.Evaluation(termination=end.termination):
            yield "its signed final record is missing"
        if stored.artifacts:
            yield "its artifacts are marked as listed by a signed record that is not there"
        return
    if "record_sha256" not in rebuilt.untold and _sha256(end.provenance.record.payload) != rebuilt.record_sha256:
        yield "its final record is not the one that its last event tells of"
    try:
        final = final_records.verified(end.provenance.record, verifier)
        final_records.check_is_of(final, record)
    except CallError as error:
        yield error.message
        return
    yield from _record(stored, end, final, rebuilt)
    yield from _artifacts(stored.artifacts, final)


def _record(stored: Stored, end: pb.Evaluation, final: FinalRecord, rebuilt: Rebuilt) -> Iterator[str]:
    """The end as it is stored, and the output, against what the executor signed."""
    record = stored.record
    expected = final_records.result(final, end.provenance.record)
    if record.state == CANCELLED:
        expected.termination.CopyFrom(end.termination)
    if expected != end:
        yield "its result is not what the signed final record says"
    if final.HasField("start_time") and from_timestamp(final.start_time) != record.start_time:
        yield "its start is not the one that the signed final record says"
    if final_records.ended_by_itself(final) and list(final.limit_hits) != rebuilt.limit_hits:
        yield "its events tell other limit hits than the signed final record"
    for (number, name), said in zip(_STREAMS, (final.stdout, final.stderr), strict=True):
        stream = rebuilt.stream(number)
        _, moved = stored.objects.get((record.attempt, number), (0, b""))
        same = stream.length == 0 or (stream.digest.digest() if stream.here else moved) == said.sha256
        if stream.length != said.bytes_kept or not same:
            yield f"its kept {name} is not what the signed final record says"


def _artifacts(stored: Sequence[Kept], final: FinalRecord) -> Iterator[str]:
    there = {one.path: one for one in stored}
    for said in final.artifacts:
        one = there.pop(said.path, None)
        if one is None:
            yield f"its artifact {_short(ascii(said.path))} is missing"
        elif one.total != said.bytes_total or not same(one, said):
            yield f"its artifact {_short(ascii(said.path))} is not what the signed final record says"
    if there:
        yield f"{len(there)} artifacts of it are not in the signed final record"


def _state_of(termination: pb.Termination) -> int | None:
    """The state that a termination leads to; None where it is FAILED or may be either."""
    kind = termination.WhichOneof("kind")
    if kind == "cancelled":
        return CANCELLED
    return SUCCEEDED if kind == "exited" and termination.exited.code == 0 else None


def _batch(record: Record) -> str:
    return "" if record.batch is None else batch_name(record.batch)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
