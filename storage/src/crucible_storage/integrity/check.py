"""The whole check of one database."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from crucible_rpc.errors import StartError
from crucible_rpc.signing import Verifier
from crucible_storage import models
from crucible_storage.integrity import evaluations, tables
from crucible_storage.integrity.findings import MAX_SHOWN, Findings, Progress
from crucible_storage.migrations import HEAD, is_current

COMPLETE_AFTER = "events-complete-after"
"""The setting that migration 0008 made."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.

    Attributes:
        progress: what was looked at.
        findings: what was wrong.
        seconds: how long it took.
    """

    progress: Progress
    findings: Findings
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether nothing was wrong."""
        return self.findings.total == 0


def check(
    connection: Connection,
    verifier: Verifier,
    *,
    limit: int = MAX_SHOWN,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Verdict:
    """Checks a database; changes nothing.

    Args:
        connection: in a transaction that sees one state of the database.
        verifier: knows the executors' keys.
        limit: faults that are kept as text.
        tell: called now and then.

    Raises:
        StartError: the database has not this version's schema.
    """
    begun = time.monotonic()
    if not is_current(connection):
        raise StartError(f"the database has not the schema revision {HEAD}; run `crucible storage migrate` first")
    findings, progress = Findings(limit), Progress()
    tell(progress)
    try:
        tables.check(connection, findings)
        evaluations.check(connection, verifier, _complete_after(connection, findings), findings, progress, tell)
    except DBAPIError as error:
        findings.add(f"the database cannot be read any further: {error.orig}")
    return Verdict(progress, findings, time.monotonic() - begun)


def _complete_after(connection: Connection, findings: Findings) -> int:
    table = models.metadata.tables["setting"]
    value = connection.execute(select(table.c.value).where(table.c.name == COMPLETE_AFTER)).scalar_one_or_none()
    if value is None or not value.isdigit():
        findings.add(f"the setting {COMPLETE_AFTER} is missing or damaged")
        return 0
    return int(value)
