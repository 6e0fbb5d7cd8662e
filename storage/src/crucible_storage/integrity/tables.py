"""What must hold between whole tables: the log's positions, references, counts; and what SQLite says of its file."""

from collections.abc import Iterator

from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection

from crucible_storage import migrate, models
from crucible_storage.integrity import batches, usage_samples
from crucible_storage.integrity.findings import Findings
from crucible_storage.lifecycle import DELETED

_LIMIT = 5
_EVENT, _OUTPUT = models.event.c, models.output.c
_LOG = select(func.count(), func.coalesce(func.min(_EVENT.position), 1), func.coalesce(func.max(_EVENT.position), 0))
_HEAD = select(models.metadata.tables["log_head"].c.position)
_BEFORE = models.event.alias("before")
_GAPS = (
    select(_EVENT.position)
    .select_from(models.event.outerjoin(_BEFORE, _BEFORE.c.position == _EVENT.position - 1))
    .where(_EVENT.position > 1, _BEFORE.c.position.is_(None))
    .order_by(_EVENT.position)
    .limit(_LIMIT)
)
_STRAY = (
    select(_OUTPUT.position)
    .select_from(models.output.outerjoin(models.event, _EVENT.position == _OUTPUT.position))
    .where(_EVENT.position.is_(None) | (_EVENT.evaluation_seq != _OUTPUT.evaluation_seq))
    .order_by(_OUTPUT.position)
    .limit(_LIMIT)
)
_COUNT = models.evaluation_count.c
_COUNTED = select(_COUNT.tenant, _COUNT.state, _COUNT.count)
_STATE = models.evaluation.c
_RECOUNTED = (
    select(_STATE.tenant, _STATE.state, func.count())
    .where(_STATE.state != DELETED)
    .group_by(_STATE.tenant, _STATE.state)
)


def check(connection: Connection, findings: Findings) -> None:
    """Checks all tables; the costly part reads every row's keys once."""
    for found in (
        _file(connection),
        _schema(connection),
        _references(connection),
        _log(connection),
        _counts(connection),
        batches.check(connection),
        usage_samples.check(connection),
    ):
        for text_ in found:
            findings.add(text_)


def _file(connection: Connection) -> Iterator[str]:
    """Pages, indexes against tables, NOT NULL and unique columns. A server checks its own files by other means."""
    if connection.dialect.name == "sqlite":
        for (line,) in connection.execute(text("SELECT * FROM pragma_integrity_check(100)")):
            if line != "ok":
                yield f"the file is damaged: {line}"


def _schema(connection: Connection) -> Iterator[str]:
    for difference in migrate.differences(connection):
        yield f"the schema is not that of its revision: {str(difference)[:200]}"


def _references(connection: Connection) -> Iterator[str]:
    for table in models.metadata.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda one: one.parent.name):
            child, parent = key.parent, key.column
            joined = table.outerjoin(parent.table, child == parent)
            query = select(child).select_from(joined).where(parent.is_(None), child.is_not(None)).limit(_LIMIT)
            for (value,) in connection.execute(query):
                yield f"{table.name}: a row names {parent.table.name} {value}, which is not there"


def _log(connection: Connection) -> Iterator[str]:
    number, first, last = connection.execute(_LOG).one()
    head = connection.execute(_HEAD).scalar_one_or_none()
    if head != last:
        yield f"the event log ends at position {last}, its head says {head}"
    if first != 1:
        yield f"the event log begins at position {first}"
    if number != last - first + 1:
        for (position,) in connection.execute(_GAPS):
            yield f"the event log has a gap before position {position}"
    for (position,) in connection.execute(_STRAY):
        yield f"output is stored at position {position}, where no event tells of it"


def _counts(connection: Connection) -> Iterator[str]:
    counted = {(tenant, state): count for tenant, state, count in connection.execute(_COUNTED) if count}
    recounted = {(tenant, state): count for tenant, state, count in connection.execute(_RECOUNTED)}
    for tenant, state in sorted(counted.keys() | recounted.keys()):
        said, found = counted.get((tenant, state), 0), recounted.get((tenant, state), 0)
        if said != found:
            yield f"tenant {tenant}: {said} evaluations are counted in state {state}, there are {found}"
