"""Lists of evaluations, newest first, page by page.

A page goes on after the number of its last evaluation, in the order of creation, which no clock can turn round. Each
state is read from its own stretch of one index and these are merged: a filter that matches little costs no scan.
"""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, bindparam, exists, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_storage import models, store, views
from crucible_storage.cursors import Cursors
from crucible_storage.database import Database

MAX_PAGE_BYTES = 2 << 20
_ALL_STATES = tuple(sorted(set(pb.EvaluationState.values()) - {pb.EVALUATION_STATE_UNSPECIFIED}))
_ROW = models.evaluation.c
_NEWEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Filter:
    """Which evaluations a list has.

    Attributes:
        tenant: whose.
        states: any of these; empty: all.
        labels: all of these.
        batch: only its items; empty: all.
    """

    tenant: str
    states: Sequence[int] = ()
    labels: Mapping[str, str] | None = None
    batch: str = ""

    @property
    def list_id(self) -> str:
        """One text for one list, to bind page tokens to."""
        filters = [self.tenant, sorted(set(self.states)), sorted((self.labels or {}).items())]
        return json.dumps([*filters, self.batch] if self.batch else filters)


class Lists:
    """Reads pages."""

    def __init__(self, database: Database, cursors: Cursors) -> None:
        self._database = database
        self._cursors = cursors

    async def page(self, wanted: Filter, size: int, token: str) -> tuple[list[pb.Evaluation], str]:
        """At most `size` evaluations (fewer when they are large) and the token of the next page, empty on the last.

        Raises:
            InvalidArgumentError: INVALID_PAGE_TOKEN.
        """
        before = self._cursors.seq(wanted.list_id, token) if token else _NEWEST

        def run(connection: Connection) -> tuple[list[pb.Evaluation], int | None]:
            seqs = _seqs(connection, wanted, before, size + 1)
            records = [store.load_by_seq(connection, seq) for seq in seqs[:size]]
            page = _fitting(views.listed(connection, records))
            more = len(seqs) > len(page)
            return page, seqs[len(page) - 1] if more else None

        page, last = await self._database.read(run)
        return page, "" if last is None else self._cursors.token(wanted.list_id, last)


def _fitting(page: list[pb.Evaluation]) -> list[pb.Evaluation]:
    """As many as one message holds, at least one."""
    size = 0
    for number, view in enumerate(page):
        size += view.ByteSize()
        if number and size > MAX_PAGE_BYTES:
            return page[:number]
    return page


def _seqs(connection: Connection, wanted: Filter, before: int, limit: int) -> list[int]:
    query = _query(wanted)
    parameters: dict[str, Any] = {"tenant": wanted.tenant, "before": before, "limit": limit}
    if wanted.batch:
        parameters["batch"] = wanted.batch
    for number, (key, value) in enumerate(sorted((wanted.labels or {}).items())):
        parameters |= {f"key{number}": key, f"value{number}": value}
    states = sorted(set(wanted.states)) or _ALL_STATES
    parts = [[row[0] for row in connection.execute(query, parameters | {"state": state})] for state in states]
    return list(heapq.merge(*parts, reverse=True))[:limit]


def _query(wanted: Filter) -> Select[Any]:
    query = select(_ROW.seq).where(
        _ROW.tenant == bindparam("tenant"), _ROW.state == bindparam("state"), _ROW.seq < bindparam("before")
    )
    if wanted.batch:
        query = query.where(_ROW.batch == bindparam("batch"))
    for number in range(len(wanted.labels or {})):
        row = models.label.alias(f"label{number}").c
        query = query.where(
            exists().where(
                row.evaluation_seq == _ROW.seq,
                row.key == bindparam(f"key{number}"),
                row.value == bindparam(f"value{number}"),
            )
        )
    return query.order_by(_ROW.seq.desc()).limit(bindparam("limit"))
