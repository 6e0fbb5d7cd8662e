"""What must hold of usage samples: whose they are, how many, and that they are in order."""

from collections.abc import Iterator

from sqlalchemy import bindparam, select, tuple_
from sqlalchemy.engine import Connection

from crucible_storage import models, usage_series
from crucible_storage.lifecycle import DELETED
from crucible_storage.names import evaluation_name

_PAGE = 100
_ROW, _EVALUATION = models.usage_sample.c, models.evaluation.c
_ROWS = (
    select(
        _ROW.evaluation_seq,
        _ROW.attempt,
        _ROW.tenant,
        _ROW.samples,
        _ROW.downsampled,
        _ROW.data,
        _EVALUATION.id,
        _EVALUATION.tenant.label("owner"),
        _EVALUATION.attempt.label("attempts"),
        _EVALUATION.state,
    )
    .join(models.evaluation, _EVALUATION.seq == _ROW.evaluation_seq)
    .where(tuple_(_ROW.evaluation_seq, _ROW.attempt) > tuple_(bindparam("seq"), bindparam("number")))
    .order_by(_ROW.evaluation_seq, _ROW.attempt)
    .limit(_PAGE)
)


def check(connection: Connection) -> Iterator[str]:
    """The faults, one line each; reads all samples once."""
    key = {"seq": 0, "number": 0}
    while rows := connection.execute(_ROWS, key).fetchall():
        for row in rows:
            what = f"{evaluation_name(row.id)}: usage samples of attempt {row.attempt}"
            if row.tenant != row.owner or not 1 <= row.attempt <= row.attempts or row.state == DELETED:
                yield f"{what} are of no attempt that it has"
            yield from (f"{what}: {fault}" for fault in _series(row.data, row.samples, row.downsampled))
        key = {"seq": rows[-1].evaluation_seq, "number": rows[-1].attempt}


def _series(data: bytes, samples: int, downsampled: int) -> Iterator[str]:
    try:
        points = usage_series.unpack(data, downsampled=bool(downsampled))
    except (ValueError, TypeError):
        yield "they cannot be read"
        return
    if (found := sum(point.samples for point in points)) != samples or not samples:
        yield f"{samples} are counted, there are {found}"
    if not usage_series.in_order(points):
        yield "they are out of order"
