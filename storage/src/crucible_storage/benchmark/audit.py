"""The audit log of a database that was filled: how long a check of all of it takes, and how large it is."""

import time
from dataclasses import dataclass

from crucible.audit.v1.audit_pb2 import AuditSummary
from crucible_storage import models
from crucible_storage.benchmark.played import Bench
from crucible_storage.maintenance.usage import table_bytes

_TABLES = (models.audit_record.name, models.audit_node.name, models.audit_checkpoint.name)


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found.

    Attributes:
        records: in the log, all of them sealed and checked.
        heads: that were signed over them.
        verify_s: how long the check took.
        verify_cpu_s: CPU of this process meanwhile.
        bytes_per_record: of the log's tables with their indexes.
    """

    records: int
    heads: int
    verify_s: float
    verify_cpu_s: float
    bytes_per_record: float


async def measure(bench: Bench) -> Audit:
    """Has the whole log checked.

    Raises:
        RuntimeError: something is wrong with it.
    """
    await bench.service.sealer.seal()
    begun, cpu = time.perf_counter(), time.process_time()
    summary = await _checked(bench)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    sizes = await bench.service.database.read(table_bytes)
    size = sum(sizes[name] for name in _TABLES)
    return Audit(summary.records, summary.checkpoints, seconds, cpu, size / summary.records)


async def _checked(bench: Bench) -> AuditSummary:
    async for told in bench.service.audit_log.verify(None):
        if isinstance(told, AuditSummary):
            if told.findings or not told.records:
                raise RuntimeError(f"the check of {told.records} records has {told.findings} findings")
            return told
    raise RuntimeError("the check ended without a summary")
