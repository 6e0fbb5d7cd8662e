"""What a start of the executor takes over from earlier ones, by their journal."""

from __future__ import annotations

import asyncio
import base64
import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor.journal import Entry, Journal, Kind
from crucible_executor.model import Artifact
from crucible_executor.output import DamagedOutputError, OutputFolder
from crucible_executor.records import Records
from crucible_executor.run import Run
from crucible_rpc import logs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovered:
    """Every run that ended and was not acknowledged, ids that may never start, how many were lost."""

    runs: dict[str, Run]
    refused: list[str]
    lost: int


async def recover(journal: Journal, outputs: OutputFolder, records: Records, now: datetime) -> Recovered:
    """Reads what the journal replayed; every run without an end gets a signed one that says it was lost.

    Raises:
        JournalFullError: there is no room to say so.
    """
    found: dict[str, Run] = {}
    refused: list[str] = []
    lost = 0
    for run_id, entry in journal.replayed.items():
        if entry.kind is Kind.REFUSED:
            refused.append(run_id)
            continue
        run = _restored(entry, outputs) if entry.kind is Kind.FINISHED else None
        if run is None:
            lost += 1
            run = await _lost(entry, journal, outputs, records, now)
        found[run_id] = run
    journal.replayed.clear()
    await asyncio.to_thread(outputs.remove_all_but, found)
    return Recovered(found, refused, lost)


def finished_fields(run: Run, record: SignedBytes) -> dict[str, object]:
    """What the journal keeps of a run's end besides its outputs."""
    return {
        "record": base64.b64encode(record.SerializeToString()).decode(),
        "started": None if run.started_at is None else run.started_at.timestamp(),
        "files": [file.offset for file in run.artifacts],
    }


def _restored(entry: Entry, outputs: OutputFolder) -> Run | None:
    """A run that ended; None when what was kept of it is damaged."""
    record = SignedBytes.FromString(base64.b64decode(entry.fields["record"]))
    artifacts = _artifacts(record, entry.fields.get("files", []))
    try:
        stdout, stderr = outputs.restore(entry.run_id, entry.fields)
        end = max((file.offset + file.bytes_kept for file in artifacts), default=0)
        left = outputs.restore_spool(entry.run_id, end) if end else None
    except DamagedOutputError as error:
        _log.error("kept output is damaged", extra=logs.fields(run=entry.run_id, reason=str(error)))
        return None
    run = Run(entry.run_id, stdout=stdout, stderr=stderr)
    run.left, run.artifacts = left, artifacts
    if entry.fields["started"] is not None:
        run.started_at = datetime.fromtimestamp(entry.fields["started"], UTC)
    run.finish(record)
    return run


def _artifacts(record: SignedBytes, offsets: list[int]) -> tuple[Artifact, ...]:
    listed = ex.FinalRecord.FromString(record.payload).artifacts
    return tuple(
        Artifact(file.path, file.bytes_total, file.bytes_kept, file.sha256, offset)
        for file, offset in zip(listed, offsets, strict=True)
    )


async def _lost(entry: Entry, journal: Journal, outputs: OutputFolder, records: Records, now: datetime) -> Run:
    if entry.kind is Kind.ACCEPTED:
        draft = ex.FinalRecord.FromString(base64.b64decode(entry.fields["draft"]))
        detail = "the executor ended while the run was under way; its next start found and removed what was left"
    else:
        signed = SignedBytes.FromString(base64.b64decode(entry.fields["record"]))
        draft = ex.FinalRecord.FromString(signed.payload)
        detail = "the run ended, but the output that the executor kept of it is damaged"
    record = records.of_lost(draft, detail, now)
    stdout, stderr = outputs.make(entry.run_id, 0)
    await asyncio.to_thread(outputs.spool(entry.run_id, 0).drop)
    run = Run(entry.run_id, stdout=stdout, stderr=stderr)
    kept = await outputs.persist(stdout, stderr)
    await journal.append(Kind.FINISHED, run.id, **finished_fields(run, record), **kept)
    run.finish(record)
    return run
