"""The audit log for administrators: pages of it, and a check of the whole of it that never holds more than a page."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.engine import Connection

from crucible.audit.v1.audit_pb2 import AuditFinding, AuditSummary, Checkpoint, LoggedRecord
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_rpc import merkle
from crucible_rpc.errors import DataLossError, FieldViolation, InvalidArgumentError, ResourceExhaustedError
from crucible_rpc.signing import Verifier
from crucible_storage import audit, audit_heads, audit_tables, models
from crucible_storage.audit import Sealed
from crucible_storage.audit_check import Check, StoredHead
from crucible_storage.cursors import Cursors
from crucible_storage.database import Database
from crucible_storage.sealer import Sealer

PAGE = 1000
MAX_TOLD = 100
"""Findings that are told one by one."""

_RETRY = timedelta(seconds=30)
_ROW = models.audit_record.c
_NEWEST = 1 << 62
_FIELDS = select(*(_ROW[name] for name in Sealed._fields)).where(_ROW.position < bindparam("before"))


class AuditLog:
    """Reads the log.

    Args:
        database: where.
        sealer: seals what waits before the log is read.
        verifier: knows the keys of heads, old ones too.
        cursors: makes page tokens.
    """

    def __init__(self, database: Database, sealer: Sealer, verifier: Verifier, cursors: Cursors) -> None:
        self._database = database
        self._sealer = sealer
        self._verifier = verifier
        self._cursors = cursors
        self._checking = asyncio.Lock()

    async def page(self, subject: str, size: int, token: str) -> tuple[list[LoggedRecord], str]:
        """At most `size` records, newest first, and the token of the next page, empty on the last.

        Args:
            subject: only those of this one; empty: all.
            size: at most so many.
            token: from the page before.

        Raises:
            InvalidArgumentError: INVALID_PAGE_TOKEN.
        """
        list_id = f"audit {subject}"
        before = self._cursors.seq(list_id, token) if token else _NEWEST
        query = _query(subject)
        if not token:
            await self._seal()

        def run(connection: Connection) -> list[Sealed]:
            rows = connection.execute(query, {"before": before, "subject": subject, "limit": size + 1})
            return [Sealed(*row) for row in rows]

        rows = await self._database.read(run)
        page = rows[:size]
        more = len(rows) > len(page)
        return [_logged(row) for row in page], self._cursors.token(list_id, page[-1].position) if more else ""

    async def verify(self, since: SignedBytes | None) -> AsyncGenerator[int | AuditFinding | AuditSummary, None]:
        """Checks the whole log as it is now: how far it came and what is wrong as it goes on, then the summary.

        Args:
            since: an earlier head.

        Raises:
            InvalidArgumentError: INVALID_FIELD, `since` is not a head of this log's keys.
            ResourceExhaustedError: AUDIT_CHECK_RUNNING.
        """
        if self._checking.locked():
            text = "the audit log is being checked already; try again when that has ended"
            raise ResourceExhaustedError("AUDIT_CHECK_RUNNING", text, retry_after=_RETRY)
        async with self._checking:
            earlier = None if since is None else self._earlier(since)
            await self._seal()
            last_position, last = await self._database.read(_end)
            check = Check(
                self._verifier,
                last_position=last_position,
                last_head=0 if last is None else last[0],
                since=earlier,
            )
            async for one in self._pages(check, last_position):
                yield one
            summary = AuditSummary(records=check.records, checkpoints=check.heads, findings=check.told)
            if last is not None:
                summary.head.CopyFrom(last[1])
            if last is not None and earlier is not None and not check.told:
                old, new = earlier.size, last[0]
                proof = await self._database.read(lambda one: merkle.consistency(old, new, audit_tables.subtrees(one)))
                summary.consistency.extend(proof)
            yield summary

    async def _pages(self, check: Check, last_position: int) -> AsyncGenerator[int | AuditFinding, None]:
        told, position, heads = 0, 0, 0
        while True:
            rows, found = await self._database.read(_reader(position, last_position, heads))
            ended = not rows and not found
            if rows:
                await asyncio.to_thread(check.take, rows, found)
                position = rows[-1].position
            elif found:
                await asyncio.to_thread(check.beyond, found)
            else:
                check.finish()
            heads = found[-1][0] if found else heads
            await self._compare_tree(check)
            for finding in check.findings[: MAX_TOLD - told]:
                yield finding
                told += 1
            check.findings.clear()
            if ended:
                return
            yield check.records

    async def _compare_tree(self, check: Check) -> None:
        """Compares what was completed of the tree with what is stored of it."""
        nodes = [node for node in check.completed if not node.level % audit_tables.STEP]
        check.completed.clear()
        if not nodes or not check.sound:
            return

        def run(connection: Connection) -> None:
            for level in sorted({node.level for node in nodes}):
                mine = [node for node in nodes if node.level == level]
                stored = audit_tables.nodes(connection, level, mine[0].number, mine[-1].number)
                for node in mine:
                    check.tree(node, stored.get(node.number))

        await self._database.read(run)

    async def _seal(self) -> None:
        """What just happened is to be seen; a log that is damaged is read as it is."""
        with suppress(DataLossError):
            await self._sealer.seal()

    def _earlier(self, since: SignedBytes) -> Checkpoint:
        try:
            return audit_heads.verified(since, self._verifier)
        except audit_heads.BadHeadError as error:
            violation = FieldViolation("since", f"must be a signed head of this log: {error}")
            raise InvalidArgumentError("INVALID_FIELD", f"since {violation.description}", [violation]) from None


def _end(connection: Connection) -> tuple[int, StoredHead | None]:
    return audit_tables.last_position(connection), audit_tables.last_checkpoint(connection)


def _reader(after: int, upto: int, after_head: int) -> Callable[[Connection], tuple[list[Sealed], list[StoredHead]]]:
    """Reads a page of records and the heads that belong to it; behind the last record, a page of the heads left."""

    def run(connection: Connection) -> tuple[list[Sealed], list[StoredHead]]:
        rows = audit_tables.records(connection, after, upto, PAGE)
        bound = rows[-1].position if rows else _NEWEST
        return rows, audit_tables.checkpoints(connection, after_head, bound, PAGE)

    return run


def _query(subject: str) -> Select[Any]:
    query = _FIELDS.where(_ROW.subject == bindparam("subject")) if subject else _FIELDS
    return query.order_by(_ROW.position.desc()).limit(bindparam("limit"))


def _logged(row: Sealed) -> LoggedRecord:
    return LoggedRecord(position=row.position, record=audit.message(row), leaf_sha256=row.leaf, chain_sha256=row.chain)
