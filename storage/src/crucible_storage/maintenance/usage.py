"""Where the bytes of a database are: by table, by tenant, and the largest evaluations."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from crucible_storage import models
from crucible_storage.artifact_tables import MOVED, PRESENT
from crucible_storage.lifecycle import DELETED
from crucible_storage.names import evaluation_name

_LARGEST = 10
_EVALUATION, _EVENT, _OUTPUT = models.evaluation.c, models.event.c, models.output.c
_THERE = _EVALUATION.state != DELETED
_EVALUATIONS = select(_EVALUATION.tenant, func.count(), func.sum(_EVALUATION.run_spec_size)).where(_THERE)
_OUTPUTS = select(_OUTPUT.tenant, func.sum(func.length(_OUTPUT.data)).label("size")).group_by(_OUTPUT.tenant)
_LARGE_OUTPUT = models.large_output.c
_MOVED = (
    select(_LARGE_OUTPUT.tenant, func.sum(_LARGE_OUTPUT.size).label("size"))
    .where(_LARGE_OUTPUT.state == MOVED)
    .group_by(_LARGE_OUTPUT.tenant)
)
_SAMPLES = select(models.usage_sample.c.tenant, func.sum(func.length(models.usage_sample.c.data)).label("size"))
_EVENTS = select(_EVENT.tenant, func.sum(func.length(_EVENT.body)).label("size")).group_by(_EVENT.tenant)
_BLOB, _ARTIFACT = models.blob.c, models.artifact.c
_LISTED = models.artifact.join(models.blob, _BLOB.seq == _ARTIFACT.blob_seq)
_ARTIFACTS = (
    select(_ARTIFACT.tenant, func.sum(_BLOB.size).label("size"))
    .select_from(_LISTED)
    .where(_ARTIFACT.confirmed == 1)
    .group_by(_ARTIFACT.tenant)
)
_OBJECTS = select(_BLOB.state, func.count(), func.sum(_BLOB.size)).group_by(_BLOB.state)
_LEFT = (
    select(func.coalesce(func.sum(_BLOB.size), 0))
    .select_from(_LISTED)
    .where(_ARTIFACT.evaluation_seq == _EVALUATION.seq)
    .correlate(models.evaluation)
    .scalar_subquery()
)
_KEPT = (
    select(func.coalesce(func.sum(_OUTPUT.size), 0))
    .where(_OUTPUT.evaluation_seq == _EVALUATION.seq)
    .correlate(models.evaluation)
    .scalar_subquery()
)
_BYTES = (_EVALUATION.run_spec_size + _KEPT + _LEFT).label("bytes")
_LARGE = (
    select(_EVALUATION.id, _EVALUATION.tenant, _BYTES)
    .where(_THERE)
    .order_by(_BYTES.desc(), _EVALUATION.seq)
    .limit(_LARGEST)
)
# Pages of each table and index; an index counts for its table.
_PAGES = text(
    "SELECT m.tbl_name, sum(s.pgsize) FROM dbstat AS s JOIN sqlite_master AS m ON m.name = s.name GROUP BY m.tbl_name"
)
_RELATION = text("SELECT pg_total_relation_size(CAST(:name AS regclass))")


@dataclass(frozen=True, slots=True)
class TableUsage:
    """One table: rows, and bytes with its indexes."""

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """One tenant: evaluations that are there, and bytes of what belongs to them.

    Of output, `output_bytes` are in the database and `moved_output_bytes` in the artifact store.
    """

    tenant: str
    evaluations: int
    output_bytes: int
    program_bytes: int
    event_bytes: int
    sample_bytes: int
    artifact_bytes: int
    moved_output_bytes: int

    @property
    def bytes(self) -> int:
        """All of it."""
        here = self.output_bytes + self.program_bytes + self.event_bytes + self.sample_bytes
        return here + self.artifact_bytes + self.moved_output_bytes


@dataclass(frozen=True, slots=True)
class EvaluationUsage:
    """One evaluation: program, and kept output and artifacts of all attempts."""

    name: str
    tenant: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ArtifactUsage:
    """The artifact store: its objects and their bytes, and how many of these bytes are being written or removed."""

    objects: int
    bytes: int
    passing_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """A database and its disk, in bytes; lists have the largest first. None: a server that does not say."""

    database_bytes: int
    reusable_bytes: int | None
    free_disk_bytes: int | None
    tables: list[TableUsage]
    tenants: list[TenantUsage]
    largest: list[EvaluationUsage]
    artifacts: ArtifactUsage


def of(connection: Connection, file: Path) -> Usage:
    """What an SQLite database uses; reads all of its tables.

    Args:
        connection: in a transaction.
        file: the same database.
    """
    room = os.statvfs(file.parent)
    free_pages = connection.execute(
        text("SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size")
    )
    return Usage(
        database_bytes=database_bytes(file),
        reusable_bytes=free_pages.scalar_one(),
        free_disk_bytes=room.f_bavail * room.f_frsize,
        **_lists(connection),
    )


def of_server(connection: Connection) -> Usage:
    """What a PostgreSQL database uses; reads all of its tables.

    Args:
        connection: in a transaction.
    """
    size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
    return Usage(size, None, None, **_lists(connection))


def table_bytes(connection: Connection) -> dict[str, int]:
    """The bytes of each table with its indexes; of an SQLite database all pages are read.

    Args:
        connection: in a transaction.
    """
    if connection.dialect.name == "sqlite":
        return _pages(connection)
    return {name: connection.execute(_RELATION, {"name": name}).scalar_one() for name in models.metadata.tables}


def _lists(connection: Connection) -> dict[str, Any]:
    return {
        "artifacts": _objects(connection),
        "tables": sorted(_tables(connection, table_bytes(connection)), key=lambda one: (-one.bytes, one.name)),
        "tenants": sorted(_tenants(connection), key=lambda one: (-one.bytes, one.tenant)),
        "largest": [
            EvaluationUsage(evaluation_name(row.id), row.tenant, int(row.bytes)) for row in connection.execute(_LARGE)
        ],
    }


def _objects(connection: Connection) -> ArtifactUsage:
    rows = connection.execute(_OBJECTS).fetchall()
    passing = sum(int(size) for state, _, size in rows if state != PRESENT)
    return ArtifactUsage(sum(row[1] for row in rows), sum(int(row[2]) for row in rows), passing)


def database_bytes(file: Path) -> int:
    """The size of a database with its write-ahead log."""
    return sum(path.stat().st_size for path in (file, file.with_name(f"{file.name}-wal")) if path.exists())


def _pages(connection: Connection) -> dict[str, int]:
    try:
        return {row[0]: row[1] for row in connection.execute(_PAGES)}
    except DBAPIError:  # an SQLite that was built without dbstat
        return {table.name: _contents(connection, table.name) for table in models.metadata.sorted_tables}


def _tables(connection: Connection, sizes: dict[str, int]) -> list[TableUsage]:
    made = []
    for table in models.metadata.sorted_tables:
        rows = connection.execute(select(func.count()).select_from(table)).scalar_one()
        made.append(TableUsage(table.name, rows, sizes[table.name]))
    return made


def _contents(connection: Connection, name: str) -> int:
    lengths = [func.coalesce(func.sum(func.length(column)), 0) for column in models.metadata.tables[name].c]
    return sum(connection.execute(select(*lengths)).one())


def _tenants(connection: Connection) -> list[TenantUsage]:
    output = {row.tenant: int(row.size) for row in connection.execute(_OUTPUTS)}
    events = {row.tenant: int(row.size) for row in connection.execute(_EVENTS)}
    by_tenant = _SAMPLES.group_by(models.usage_sample.c.tenant)
    samples = {row.tenant: int(row.size) for row in connection.execute(by_tenant)}
    artifacts = {row.tenant: int(row.size) for row in connection.execute(_ARTIFACTS)}
    moved = {row.tenant: int(row.size) for row in connection.execute(_MOVED)}
    rows = connection.execute(_EVALUATIONS.group_by(_EVALUATION.tenant))
    there = {tenant: (number, size) for tenant, number, size in rows}
    made = []
    for tenant in there.keys() | output.keys() | events.keys() | samples.keys() | artifacts.keys() | moved.keys():
        evaluations, programs = there.get(tenant, (0, 0))
        more = events.get(tenant, 0), samples.get(tenant, 0), artifacts.get(tenant, 0), moved.get(tenant, 0)
        made.append(TenantUsage(tenant, evaluations, output.get(tenant, 0), programs, *more))
    return made
