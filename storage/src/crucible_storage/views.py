"""Evaluations as callers see them: put together from a record and what its tables hold beside it."""

import json
from collections.abc import Iterable
from typing import Literal

from sqlalchemy import bindparam, exists, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.executor.v1.executor_service_pb2 import RunSpec
from crucible_storage import models, outputs
from crucible_storage.clock import timestamp
from crucible_storage.lifecycle import End, Record
from crucible_storage.names import batch_name, evaluation_name
from crucible_storage.prepared import Prepared

_REPLACED: tuple[Literal["start_time", "stdout", "stderr"], ...] = ("start_time", "stdout", "stderr")
"""What the executor's record says better than what storage noted meanwhile."""

_RESULTS = select(models.result.c.evaluation_seq, models.result.c.result).where(
    models.result.c.evaluation_seq.in_(bindparam("seqs", expanding=True))
)
_ATTEMPT = models.failed_attempt.c
_FAILED = (
    select(_ATTEMPT.evaluation_seq, _ATTEMPT.attempt, _ATTEMPT.reason, _ATTEMPT.time)
    .where(_ATTEMPT.evaluation_seq.in_(bindparam("seqs", expanding=True)))
    .order_by(_ATTEMPT.evaluation_seq, _ATTEMPT.attempt)
)
_PROGRAM, _RESULT = models.program.c, models.result.c
_REST = Prepared(
    select(_PROGRAM.run_spec, _RESULT.result, exists().where(_ATTEMPT.evaluation_seq == _PROGRAM.evaluation_seq))
    .select_from(models.program.outerjoin(models.result, _RESULT.evaluation_seq == _PROGRAM.evaluation_seq))
    .where(_PROGRAM.evaluation_seq == bindparam("seq"))
)


def complete(connection: Connection, record: Record) -> pb.Evaluation:
    """One evaluation with its program and the beginnings of its output."""
    rest = _REST.first(connection, {"seq": record.seq})
    if rest is None:
        raise LookupError(f"there is no evaluation number {record.seq}")
    run_spec, result, has_failed = rest
    view = new(record)
    if result is not None:
        _add_result(view, result)
    if has_failed:
        _add_failed(connection, {record.seq: view})
    view.spec.program.CopyFrom(RunSpec.FromString(run_spec).program)
    add_previews(connection, record, view)
    return view


def at_its_end(end: End, program: pb.Program) -> pb.Evaluation:
    """The same as `complete`, of an evaluation that has just ended; reads nothing."""
    view = new(end.record)
    _merge_result(view, end.result)
    view.spec.program.CopyFrom(program)
    for stream, summary in ((pb.OUTPUT_STREAM_STDOUT, view.stdout), (pb.OUTPUT_STREAM_STDERR, view.stderr)):
        if written := end.output.get(int(stream)):
            summary.preview = written[: outputs.MAX_PREVIEW]
    return view


def add_previews(connection: Connection, record: Record, view: pb.Evaluation) -> None:
    """Adds the beginnings of an evaluation's output."""
    if record.stdout_bytes:
        view.stdout.preview = _preview(connection, record, pb.OUTPUT_STREAM_STDOUT)
    if record.stderr_bytes:
        view.stderr.preview = _preview(connection, record, pb.OUTPUT_STREAM_STDERR)


def listed(connection: Connection, records: Iterable[Record]) -> list[pb.Evaluation]:
    """Evaluations without their programs but for the runtime, and without previews."""
    views = {record.seq: new(record) for record in records}
    if not views:
        return []
    for seq, blob in connection.execute(_RESULTS, {"seqs": list(views)}):
        _add_result(views[seq], blob)
    _add_failed(connection, views)
    return list(views.values())


def _add_result(view: pb.Evaluation, blob: bytes) -> None:
    _merge_result(view, pb.Evaluation.FromString(blob))


def _merge_result(view: pb.Evaluation, end: pb.Evaluation) -> None:
    for name in _REPLACED:
        if end.HasField(name):
            view.ClearField(name)
    view.MergeFrom(end)


def _add_failed(connection: Connection, views: dict[int, pb.Evaluation]) -> None:
    for seq, attempt, reason, time in connection.execute(_FAILED, {"seqs": list(views)}):
        views[seq].failed_attempts.add(attempt=attempt, reason=reason, time=timestamp(time))


def new(record: Record) -> pb.Evaluation:
    """What the record alone says; that is all of an evaluation without failed attempts and without an end."""
    labels: dict[str, str] = json.loads(record.labels)
    view = pb.Evaluation(
        name=evaluation_name(record.id),
        tenant=record.tenant,
        creator=record.creator,
        spec=pb.EvaluationSpec(
            program=pb.Program(runtime=record.runtime),
            limits=pb.Limits.FromString(record.limits),
            engine=record.engine,
            priority=record.priority,
            labels=labels,
        ),
        state=pb.EvaluationState.ValueType(record.state),
        version=record.version,
        attempt=record.attempt,
        create_time=timestamp(record.create_time),
        stdout=pb.OutputSummary(bytes_total=record.stdout_bytes, bytes_kept=record.stdout_bytes),
        stderr=pb.OutputSummary(bytes_total=record.stderr_bytes, bytes_kept=record.stderr_bytes),
        labels=labels,
        batch="" if record.batch is None else batch_name(record.batch),
    )
    if record.start_time is not None:
        view.start_time.CopyFrom(timestamp(record.start_time))
    if record.end_time is not None:
        view.end_time.CopyFrom(timestamp(record.end_time))
    return view


def _preview(connection: Connection, record: Record, stream: pb.OutputStream.ValueType) -> bytes:
    return outputs.preview(connection, record.seq, record.attempt, int(stream))
