"""Evaluations that ended as infrastructure failures: looked at, and run again as new ones.

A terminal state never changes: what is tried again is a new evaluation of the same program.
"""

from typing import Any

from sqlalchemy import Select, bindparam, select, text

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import tenant_pb2 as pb
from crucible_rpc.errors import NotFoundError
from crucible_storage import models, store, views
from crucible_storage.clock import timestamp
from crucible_storage.cursors import Cursors
from crucible_storage.database import Database
from crucible_storage.evaluations import Evaluations, Wanted
from crucible_storage.names import evaluation_name
from crucible_storage.transaction import WriteTransaction

RETRY_LABEL = "crucible.retry-of"
"""The label of a new evaluation that names the one it was made of."""

_NEWEST = 1 << 62
_ROW = models.dead_letter.c
_EVALUATION = models.evaluation.c
_PAGE = (
    select(
        _ROW.seq,
        _ROW.evaluation_seq,
        _EVALUATION.id,
        _ROW.tenant,
        _EVALUATION.create_time,
        _ROW.time,
        _EVALUATION.attempt,
        _ROW.reason,
        _ROW.retried_as,
    )
    .join_from(models.dead_letter, models.evaluation, _EVALUATION.seq == _ROW.evaluation_seq)
    .where(_ROW.seq < bindparam("before"))
    .order_by(_ROW.seq.desc())
    .limit(bindparam("limit"))
)
_FAILED = select(
    models.failed_attempt.c.evaluation_seq,
    models.failed_attempt.c.attempt,
    models.failed_attempt.c.reason,
    models.failed_attempt.c.time,
)
_LOCKED = (
    select(_ROW.seq, _ROW.evaluation_seq, _ROW.retried_as)
    .join_from(models.dead_letter, models.evaluation, _EVALUATION.seq == _ROW.evaluation_seq)
    .where(_EVALUATION.id == bindparam("id"))
    .with_for_update(of=models.dead_letter)
)
_RETRIED = text("UPDATE dead_letter SET retried_as = :id WHERE seq = :seq")


class DeadLetters:
    """All of them.

    Args:
        database: where.
        cursors: page tokens.
        evaluations: makes the new ones.
    """

    def __init__(self, database: Database, cursors: Cursors, evaluations: Evaluations) -> None:
        self._database = database
        self._cursors = cursors
        self._evaluations = evaluations

    async def page(self, tenant: str, size: int, token: str, *, retried: bool) -> tuple[list[pb.DeadLetter], str]:
        """At most `size`, the newest end first, and the token of the next page, empty on the last.

        Args:
            tenant: whose; empty: everybody's.
            size: how many.
            token: of the page before.
            retried: those that were retried as well.

        Raises:
            InvalidArgumentError: INVALID_PAGE_TOKEN.
        """
        list_id = f"dead letters {tenant} {retried}"
        before = self._cursors.seq(list_id, token) if token else _NEWEST
        query = _narrowed(_PAGE, tenant, retried=retried)

        def run(connection: Any) -> tuple[list[pb.DeadLetter], int | None]:
            rows = connection.execute(query, {"before": before, "limit": size + 1}).fetchall()
            letters = {row.evaluation_seq: _view(row) for row in rows[:size]}
            failed = _FAILED.where(models.failed_attempt.c.evaluation_seq.in_(list(letters)))
            ordered = failed.order_by(models.failed_attempt.c.evaluation_seq, models.failed_attempt.c.attempt)
            for seq, attempt, reason, time in connection.execute(ordered):
                letters[seq].failed_attempts.add(attempt=attempt, reason=reason, time=timestamp(time))
            return list(letters.values()), rows[size - 1].seq if len(rows) > size else None

        page, last = await self._database.read(run)
        return page, "" if last is None else self._cursors.token(list_id, last)

    async def retry(self, evaluation_id: str, by: str) -> tuple[str, bool]:
        """Makes a new evaluation of a dead letter; answers its id, and whether an earlier call had made it.

        Raises:
            NotFoundError: DEAD_LETTER_NOT_FOUND.
            InvalidArgumentError: as `Evaluations.create`.
            ResourceExhaustedError: as `Evaluations.create`.
        """

        def run(transaction: WriteTransaction) -> tuple[str, bool]:
            row = transaction.execute(_LOCKED, {"id": evaluation_id}).fetchone()
            if row is None:
                name = evaluation_name(evaluation_id)
                raise NotFoundError("DEAD_LETTER_NOT_FOUND", f"{name} did not end as an infrastructure failure")
            if row.retried_as is not None:
                return str(row.retried_as), True
            old = store.load_by_seq(transaction.connection, row.evaluation_seq)
            spec = ev.EvaluationSpec()
            spec.CopyFrom(views.complete(transaction.settled(old.seq), old).spec)
            spec.labels[RETRY_LABEL] = evaluation_name(old.id)
            made = self._evaluations.insert(transaction, Wanted.of(old.tenant, by, "", spec))
            transaction.execute(_RETRIED, {"id": made.id, "seq": row.seq})
            return made.id, False

        return await self._database.write(run)


def _narrowed(query: Select[Any], tenant: str, *, retried: bool) -> Select[Any]:
    if tenant:
        query = query.where(_ROW.tenant == tenant)
    return query if retried else query.where(_ROW.retried_as.is_(None))


def _view(row: Any) -> pb.DeadLetter:
    return pb.DeadLetter(
        evaluation=evaluation_name(row.id),
        tenant=row.tenant,
        create_time=timestamp(row.create_time),
        end_time=timestamp(row.time),
        attempts=row.attempt,
        reason=row.reason,
        retried_as=evaluation_name(row.retried_as) if row.retried_as else "",
    )
