"""What must hold between batches, their items and the items' evaluations; the kept counts, counted again."""

from collections.abc import Iterator

from sqlalchemy import select, text
from sqlalchemy.engine import Connection

from crucible_storage import models
from crucible_storage.names import batch_name, evaluation_name

_LIMIT = 5
_COUNT = models.batch_count.c
_COUNTED = select(_COUNT.batch, _COUNT.kind, _COUNT["count"])
_RECOUNTED = text(
    """
    SELECT i.batch, CASE WHEN i.end_kind IS NOT NULL THEN i.end_kind
                         WHEN e.state = 1 AND e.blocked > 0 THEN 0 ELSE e.state END AS kind, count(*)
    FROM batch_item AS i JOIN evaluation AS e ON e.seq = i.evaluation_seq
    GROUP BY 1, 2
    """
)
_ITEMS = text(
    """
    SELECT b.id, b.items, count(i.evaluation_seq)
    FROM batch AS b LEFT JOIN batch_item AS i ON i.batch = b.id
    GROUP BY b.id, b.items HAVING b.items <> count(i.evaluation_seq)
    ORDER BY b.id LIMIT :limit
    """
)
_STRAYS = text(
    """
    SELECT e.id FROM evaluation AS e
    LEFT JOIN batch_item AS i ON i.evaluation_seq = e.seq LEFT JOIN batch AS b ON b.id = e.batch
    WHERE coalesce(e.batch, '') <> coalesce(i.batch, '')
       OR e.batch IS NOT NULL AND (b.id IS NULL OR b.tenant <> e.tenant OR i.tenant <> e.tenant)
    ORDER BY e.seq LIMIT :limit
    """
)
# 6 and 7: CANCELLED, and the kind of an item that was skipped; 7 is also the state of what was deleted.
_ENDS = text(
    """
    SELECT e.id FROM batch_item AS i
    JOIN evaluation AS e ON e.seq = i.evaluation_seq LEFT JOIN event AS v ON v.position = i.end_position
    WHERE (e.state >= 4) <> (i.end_kind IS NOT NULL)
       OR (i.end_position IS NULL) <> (i.end_kind IS NULL)
       OR e.state IN (4, 5, 6) AND i.end_kind <> e.state AND NOT (e.state = 6 AND i.end_kind = 7)
       OR i.end_position IS NOT NULL AND (v.position IS NULL OR v.evaluation_seq <> e.seq)
    ORDER BY e.seq LIMIT :limit
    """
)
# The items of a cancelled batch wait for nothing any more but for being ended. Task 1 is `batch_tasks.RELEASE`.
_BLOCKED = text(
    """
    SELECT id, blocked, reasons FROM (
        SELECT e.seq, e.id, e.blocked, CASE WHEN e.state <> 1 THEN 0 ELSE
            (SELECT count(*) FROM batch_dependency AS d WHERE d.evaluation_seq = e.seq)
            + CASE WHEN b.start_when_complete
                        AND (b.complete_time IS NULL OR b.task = 1 AND i.number >= b.task_cursor) THEN 1 ELSE 0 END
            END AS reasons
        FROM evaluation AS e
        JOIN batch_item AS i ON i.evaluation_seq = e.seq JOIN batch AS b ON b.id = e.batch
        WHERE e.state < 6 AND b.cancel_time IS NULL
    ) AS waiting
    WHERE blocked <> reasons ORDER BY seq LIMIT :limit
    """
)


def check(connection: Connection) -> Iterator[str]:
    """All that does not fit together, one line each; the first few of each kind, the counts all."""
    some = {"limit": _LIMIT}
    counted = {(batch, kind): count for batch, kind, count in connection.execute(_COUNTED) if count}
    recounted = {(batch, kind): count for batch, kind, count in connection.execute(_RECOUNTED)}
    for batch, kind in sorted(counted.keys() | recounted.keys()):
        said, found = counted.get((batch, kind), 0), recounted.get((batch, kind), 0)
        if said != found:
            yield f"{batch_name(batch)}: {said} items are counted as of kind {kind}, there are {found}"
    for batch, said, found in connection.execute(_ITEMS, some):
        yield f"{batch_name(batch)}: its row says that it has {said} items, there are {found}"
    for (one,) in connection.execute(_STRAYS, some):
        yield f"{evaluation_name(one)}: its row names another batch than the one of which it is an item"
    for (one,) in connection.execute(_ENDS, some):
        yield f"{evaluation_name(one)}: its batch has another end of it than its row"
    for one, said, found in connection.execute(_BLOCKED, some):
        yield f"{evaluation_name(one)}: it waits for {said} things, and {found} are stored"
