"""Pauses of the queue, and what an operator sees of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, func, select, text
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import tenant_pb2 as pb
from crucible_storage import audit, models, tenants
from crucible_storage.clock import Clock, timestamp
from crucible_storage.database import Database
from crucible_storage.lifecycle import HELD, QUEUED
from crucible_storage.models import PLATFORM
from crucible_storage.transaction import WriteTransaction

_ROW = models.queue_pause.c
_PAUSES = select(_ROW.tenant, _ROW.paused_by, _ROW.reason, _ROW.time).order_by(_ROW.tenant)
_ONE = _PAUSES.where(_ROW.tenant == bindparam("name"))
_PAUSE = text(
    """
    INSERT INTO queue_pause (tenant, paused_by, reason, time) VALUES (:tenant, :paused_by, :reason, :time)
    ON CONFLICT (tenant) DO NOTHING
    """
)
_RESUME = delete(models.queue_pause).where(_ROW.tenant == bindparam("name"))
_COUNT = models.evaluation_count.c
_WORK = select(_COUNT.tenant, _COUNT.state, _COUNT.count).where(_COUNT.state.in_((QUEUED, *sorted(HELD))))
_TENANT = models.tenant.c
_TENANTS = select(_TENANT.tenant, _TENANT.weight, _TENANT.max_running).order_by(_TENANT.tenant)
_EVALUATION = models.evaluation.c
_OLDEST = (
    select(_EVALUATION.create_time)
    .where(_EVALUATION.tenant == bindparam("tenant"), _EVALUATION.state == QUEUED)
    .order_by(_EVALUATION.seq)
    .limit(1)
)
_DEAD = select(func.count()).select_from(models.dead_letter).where(models.dead_letter.c.retried_as.is_(None))


@dataclass(frozen=True, slots=True)
class QueueView:
    """The queue as it is.

    Attributes:
        tenants: those with work or a pause, by name.
        pauses: that of everybody first, then by tenant.
        dead_letters: those that were not retried.
    """

    tenants: list[pb.TenantQueue]
    pauses: list[pb.QueuePause]
    dead_letters: int

    @property
    def queued(self) -> int:
        """Of all tenants."""
        return sum(one.queued for one in self.tenants)

    @property
    def running(self) -> int:
        """Of all tenants."""
        return sum(one.running for one in self.tenants)


class Pauses:
    """Pauses and resumes the queue of everybody (`tenant` empty) or of one tenant."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def pause(self, tenant: str, by: str, reason: str) -> pb.QueuePause:
        """Lets nothing more be leased; a pause that is there already stays as it is.

        Raises:
            NotFoundError: TENANT_NOT_FOUND.
        """

        def run(transaction: WriteTransaction) -> pb.QueuePause:
            if tenant:
                tenants.check_exists(transaction.connection, tenant)
            now = self._clock.now()
            row = {"tenant": tenant or PLATFORM, "paused_by": by, "reason": reason, "time": now}
            if transaction.execute(_PAUSE, row).rowcount == 1:
                _note(transaction, audit.QUEUE_PAUSE, tenant, by, now, reason)
            return _view(transaction.execute(_ONE, {"name": tenant or PLATFORM}).one())

        return await self._database.write(run)

    async def resume(self, tenant: str, by: str = "") -> pb.QueuePause | None:
        """Ends a pause, for the key `by`; answers the one that ended, None when there was none."""

        def run(transaction: WriteTransaction) -> pb.QueuePause | None:
            row = transaction.execute(_ONE, {"name": tenant or PLATFORM}).fetchone()
            transaction.execute(_RESUME, {"name": tenant or PLATFORM})
            transaction.notices.work = True
            if row is None:
                return None
            _note(transaction, audit.QUEUE_RESUME, tenant, by, self._clock.now())
            return _view(row)

        return await self._database.write(run)

    async def look(self) -> QueueView:
        """The queue as it is."""
        return await self._database.read(_look)


def _note(transaction: WriteTransaction, action: str, tenant: str, by: str, now: int, reason: str = "") -> None:
    whose, subject = tenant or PLATFORM, f"tenants/{tenant}" if tenant else "queue"
    actor = audit.by_key(by)
    audit.record(transaction, time=now, tenant=whose, actor=actor, action=action, subject=subject, reason=reason)


def _look(connection: Connection) -> QueueView:
    pauses = [_view(row) for row in connection.execute(_PAUSES)]
    paused = {pause.tenant for pause in pauses}
    counts: dict[str, pb.TenantQueue] = {}
    for tenant, state, count in connection.execute(_WORK):
        one = counts.setdefault(tenant, pb.TenantQueue(tenant=tenant))
        if state == QUEUED:
            one.queued = count
        else:
            one.running += count
    views = []
    for tenant, weight, max_running in connection.execute(_TENANTS):
        one = counts.get(tenant, pb.TenantQueue(tenant=tenant))
        one.weight, one.max_running = weight, max_running
        if one.queued and (oldest := connection.execute(_OLDEST, {"tenant": tenant}).scalar()) is not None:
            one.oldest_create_time.CopyFrom(timestamp(oldest))
        if one.queued or one.running or tenant in paused:
            views.append(one)
    pauses.sort(key=lambda pause: pause.tenant)
    return QueueView(views, pauses, connection.execute(_DEAD).scalar_one())


def _view(row: Any) -> pb.QueuePause:
    fields: Mapping[str, Any] = row._mapping
    tenant = "" if fields["tenant"] == PLATFORM else fields["tenant"]
    return pb.QueuePause(tenant=tenant, by=fields["paused_by"], reason=fields["reason"], time=timestamp(fields["time"]))
