"""All evaluations, in the order of their numbers: each is put together from its tables and held against its events."""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import DecodeError
from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.engine import Connection, Row

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.event_pb2 import Event, OutputChunk
from crucible_rpc.signing import Verifier
from crucible_storage import models, store
from crucible_storage.artifact_tables import PRESENT
from crucible_storage.artifacts.references import Kept
from crucible_storage.clock import timestamp
from crucible_storage.integrity.evaluation import Stored, faults
from crucible_storage.integrity.findings import Findings, Progress
from crucible_storage.lifecycle import DELETED, Record
from crucible_storage.names import evaluation_name
from crucible_storage.rebuild import HistoryError, Rebuilt

_PAGE = 100
_UNREADABLE = (HistoryError, DecodeError, ValueError, TypeError, OverflowError)  # SQLite takes any type in any column
_EVENT, _OUTPUT = models.event.c, models.output.c


def _of(table: Any, *columns: Any) -> Select[Any]:
    """Rows of a table that belong to a range of evaluations, by evaluation; the first two columns are whose."""
    owner = table.c.evaluation_seq
    rows = select(owner, table.c.tenant, *columns)
    return rows.where(owner >= bindparam("first"), owner <= bindparam("last")).order_by(owner)


_PROGRAMS = _of(models.program, models.program.c.run_spec)
_RESULTS = _of(models.result, models.result.c.result)
_LABELS = _of(models.label, models.label.c.key, models.label.c.value)
_FAILED = _of(
    models.failed_attempt,
    models.failed_attempt.c.attempt,
    models.failed_attempt.c.reason,
    models.failed_attempt.c.time,
).order_by(models.failed_attempt.c.attempt)
_ARTIFACT, _BLOB = models.artifact.c, models.blob.c
_ARTIFACTS = _of(
    models.artifact,
    _ARTIFACT.attempt,
    _ARTIFACT.path,
    _ARTIFACT.total,
    _ARTIFACT.cut,
    _ARTIFACT.confirmed,
    _BLOB.tenant.label("blob_tenant"),
    _BLOB.seq,
    _BLOB.name,
    _BLOB.sha256,
    _BLOB.size,
    _BLOB.state,
).select_from(models.artifact.outerjoin(models.blob, _BLOB.seq == _ARTIFACT.blob_seq))
_LARGE = models.large_output.c
_LARGE_OUTPUT = _of(
    models.large_output,
    _LARGE.attempt,
    _LARGE.stream,
    _LARGE.blob_seq,
    _BLOB.tenant.label("blob_tenant"),
    _BLOB.size,
    _BLOB.sha256,
    _BLOB.state,
).select_from(models.large_output.outerjoin(models.blob, _BLOB.seq == _LARGE.blob_seq))
_EVENTS = (
    _of(
        models.event,
        _EVENT.position,
        _EVENT.time,
        _EVENT.attempt,
        _EVENT.body,
        _OUTPUT.evaluation_seq.label("output_of"),
        _OUTPUT.tenant.label("output_tenant"),
        _OUTPUT.attempt.label("output_attempt"),
        _OUTPUT.stream,
        _OUTPUT.offset,
        _OUTPUT.size,
        _OUTPUT.data,
    )
    .select_from(models.event.outerjoin(models.output, _OUTPUT.position == _EVENT.position))
    .order_by(_EVENT.position)
)
_COUNT = select(func.count()).select_from(models.evaluation)


def check(
    connection: Connection,
    verifier: Verifier,
    complete_after: int,
    findings: Findings,
    progress: Progress,
    tell: Callable[[Progress], None],
) -> None:
    """Checks every evaluation.

    Args:
        connection: in a transaction that sees one state of the database.
        verifier: knows the executors' keys.
        complete_after: events up to this position tell less, see `rebuild`.
        findings: takes the faults.
        progress: counts.
        tell: called after each page.
    """
    progress.of = connection.execute(_COUNT).scalar_one()
    after = 0
    while records := store.load_page(connection, after, _PAGE):
        first, after = after + 1, records[-1].seq
        page = _Page(connection, first, after)
        for record in records:
            _check_one(record, page, verifier, complete_after, findings, progress)
            progress.evaluations += 1
        tell(progress)


def _check_one(
    record: Record, page: "_Page", verifier: Verifier, complete_after: int, findings: Findings, progress: Progress
) -> None:
    def add(text: str) -> None:
        findings.add(f"{evaluation_name(record.id)}: {text}")

    rebuilt = Rebuilt(complete_after)
    whole = True
    for row in page.events.of(record.seq):
        progress.events += 1
        if not whole:
            continue
        try:
            event, elsewhere = _event(row, record)
            progress.output_bytes += len(event.output.data)
            rebuilt.take(event, elsewhere)
        except _UNREADABLE as error:
            add(f"event {row.position}: {error}")
            whole = False
    programs, results = list(page.programs.of(record.seq)), list(page.results.of(record.seq))
    failed, labels = list(page.failed.of(record.seq)), list(page.labels.of(record.seq))
    artifacts, large = list(page.artifacts.of(record.seq)), list(page.large.of(record.seq))
    owned = (programs, results, failed, labels, artifacts, large)
    if any(row.tenant != record.tenant for rows in owned for row in rows):
        add("something of it belongs to another tenant")
    if not whole:
        return
    if not rebuilt.state:
        add("its events are missing" if not rebuilt.removed else "its events are gone, and none tells of a deletion")
        return
    stored = Stored(
        record,
        program=programs[0].run_spec if programs else None,
        result=results[0].result if results else None,
        failed=[(row.attempt, row.reason, row.time) for row in failed],
        labels={row.key: row.value for row in labels},
        artifacts=[_kept(row) for row in artifacts if row.confirmed and row.attempt == record.attempt],
        objects={(row.attempt, row.stream): (row.size, row.sha256) for row in large if row.blob_seq is not None},
    )
    if any((row.state, row.blob_tenant) != (PRESENT, record.tenant) for row in artifacts):
        add("an artifact of it refers to no object of its tenant that is there")
    if any((row.state, row.blob_tenant) != (PRESENT, record.tenant) for row in large if row.blob_seq is not None):
        add("output of it refers to no object of its tenant that is there")
    try:
        for fault in faults(stored, rebuilt, verifier):
            add(fault)
    except _UNREADABLE:
        add("a value, a message or a JSON text of it cannot be read")
    progress.records += bool(rebuilt.record_sha256)
    progress.deleted += record.state == DELETED


def _kept(row: Row[Any]) -> Kept:
    return Kept(row.path, row.total, bool(row.cut), True, row.seq, row.name, row.sha256, row.size)


def _event(row: Row[Any], record: Record) -> tuple[Event, int]:
    """An event with its output's bytes, and how many bytes it would have that are elsewhere.

    Raises:
        HistoryError: its output is missing, or somebody else's.
    """
    if row.tenant != record.tenant:
        raise HistoryError("it belongs to another tenant")
    event = Event.FromString(row.body)
    event.position, event.attempt = row.position, row.attempt
    event.time.CopyFrom(timestamp(row.time))
    if row.stream is None:
        if not row.body:
            raise HistoryError("its output is missing")
        return event, 0
    if row.body or (row.output_of, row.output_tenant, row.output_attempt) != (record.seq, row.tenant, row.attempt):
        raise HistoryError("the output at its position is not its own")
    if row.data and row.size != len(row.data):
        raise HistoryError(f"its output has {len(row.data)} bytes, {row.size} were stored")
    event.output.CopyFrom(OutputChunk(stream=pb.OutputStream.ValueType(row.stream), offset=row.offset, data=row.data))
    return event, 0 if row.data else row.size


class _Page:
    """The rows of all tables that belong to a range of evaluations, read as they are asked for."""

    def __init__(self, connection: Connection, first: int, last: int) -> None:
        bounds = {"first": first, "last": last}
        self.events = _Owned(connection, _EVENTS, bounds, ahead=16)
        self.programs = _Owned(connection, _PROGRAMS, bounds, ahead=1)
        self.results = _Owned(connection, _RESULTS, bounds, ahead=16)
        self.failed = _Owned(connection, _FAILED, bounds, ahead=64)
        self.artifacts = _Owned(connection, _ARTIFACTS, bounds, ahead=64)
        self.labels = _Owned(connection, _LABELS, bounds, ahead=64)
        self.large = _Owned(connection, _LARGE_OUTPUT, bounds, ahead=64)


class _Owned:
    """Rows in the order of their owners.

    Args:
        connection: where.
        query: made by `_of`.
        bounds: the range of owners.
        ahead: rows held in memory at once.
    """

    def __init__(self, connection: Connection, query: Select[Any], bounds: dict[str, int], ahead: int) -> None:
        self._rows = iter(connection.execute(query, bounds, execution_options={"yield_per": ahead}))
        self._next: Row[Any] | None = next(self._rows, None)

    def of(self, seq: int) -> Iterator[Row[Any]]:
        """The rows of one owner, who is above those asked for before. Rows of owners that do not exist are skipped."""
        while self._next is not None and self._next.evaluation_seq <= seq:
            row = self._next
            self._next = next(self._rows, None)
            if row.evaluation_seq == seq:
                yield row
