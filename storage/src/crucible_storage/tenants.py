"""Tenants: their quotas, and what they use."""

from typing import Any

from sqlalchemy import bindparam, select, text, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import tenant_pb2 as pb
from crucible_rpc.errors import AlreadyExistsError, NotFoundError
from crucible_storage import audit, models
from crucible_storage.clock import Clock, timestamp
from crucible_storage.database import Database
from crucible_storage.lifecycle import HELD, QUEUED
from crucible_storage.transaction import WriteTransaction
from crucible_storage.usage import ALL_DAYS, day_of

SETTINGS = tuple(field.name for field in pb.Quota.DESCRIPTOR.fields)
"""The columns that `Quota` sets; they have the names of its fields."""

_ROW = models.tenant.c
_INSERT = text(
    """
    INSERT INTO tenant (tenant, weight, max_priority, max_running, max_queued, evaluations_per_day,
                        cpu_seconds_per_day, max_stored_bytes, create_time)
    VALUES (:tenant, 1, 100, 0, 0, 0, 0, 0, :now) ON CONFLICT (tenant) DO NOTHING
    """
)
_ALL = select(_ROW.tenant, _ROW.create_time, *(_ROW[name] for name in SETTINGS)).order_by(_ROW.tenant)
_EXISTS = select(_ROW.tenant).where(_ROW.tenant == bindparam("name"))
_USE = models.tenant_use.c
_COUNT = models.evaluation_count.c


def ensure(transaction: WriteTransaction, tenant: str, now: int) -> bool:
    """Makes a tenant without quotas, unless it is there; answers whether it did."""
    return transaction.execute(_INSERT, {"tenant": tenant, "now": now}).rowcount == 1


def check_exists(connection: Connection, tenant: str) -> None:
    """Returns when there is such a tenant.

    Raises:
        NotFoundError: TENANT_NOT_FOUND.
    """
    if connection.execute(_EXISTS, {"name": tenant}).fetchone() is None:
        raise NotFoundError("TENANT_NOT_FOUND", f"there is no tenant {tenant}; make it with CreateTenant")


class Tenants:
    """All tenants."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(self, tenant: str, quota: pb.Quota, by: str = "") -> pb.Tenant:
        """Makes a tenant; what `quota` does not set has its default. `by` is the id of the key that asks for it.

        Raises:
            AlreadyExistsError: TENANT_EXISTS.
        """

        def run(transaction: WriteTransaction) -> pb.Tenant:
            now = self._clock.now()
            if not ensure(transaction, tenant, now):
                text_ = f"there is a tenant {tenant} already; change its quotas with SetQuota"
                raise AlreadyExistsError("TENANT_EXISTS", text_)
            _note(transaction, audit.TENANT_CREATE, tenant, quota, by, now)
            return _changed(transaction, tenant, quota, now)

        return await self._database.write(run)

    async def set_quota(self, tenant: str, quota: pb.Quota, by: str = "") -> pb.Tenant:
        """Changes what `quota` sets. `by` is the id of the key that asks for it.

        Raises:
            NotFoundError: TENANT_NOT_FOUND.
        """

        def run(transaction: WriteTransaction) -> pb.Tenant:
            check_exists(transaction.connection, tenant)
            now = self._clock.now()
            _note(transaction, audit.TENANT_QUOTA, tenant, quota, by, now)
            return _changed(transaction, tenant, quota, now)

        return await self._database.write(run)

    async def list(self) -> list[pb.Tenant]:
        """All tenants, by name."""
        now = self._clock.now()
        return await self._database.read(lambda connection: _views(connection, now))


def _note(transaction: WriteTransaction, action: str, tenant: str, quota: pb.Quota, by: str, now: int) -> None:
    set_ = {field.name: value for field, value in quota.ListFields()}
    name = f"tenants/{tenant}"
    audit.record(transaction, time=now, tenant=tenant, actor=audit.by_key(by), action=action, subject=name, **set_)


def _changed(transaction: WriteTransaction, tenant: str, quota: pb.Quota, now: int) -> pb.Tenant:
    given = {field.name: value for field, value in quota.ListFields()}
    if given:
        transaction.execute(update(models.tenant).where(_ROW.tenant == tenant).values(given))
        transaction.usage.accounts.clear()
        transaction.notices.work = True  # more may run than before
    return _views(transaction.connection, now, tenant)[0]


def _views(connection: Connection, now: int, name: str | None = None) -> list[pb.Tenant]:
    """All tenants, or one."""
    query = _ALL if name is None else _ALL.where(_ROW.tenant == name)
    counts = select(_COUNT.tenant, _COUNT.state, _COUNT.count)
    uses = select(_USE.tenant, _USE.day, _USE.evaluations, _USE.cpu_micros, _USE.stored_bytes)
    uses = uses.where(_USE.day.in_((ALL_DAYS, day_of(now))))
    if name is not None:
        counts, uses = counts.where(_COUNT.tenant == name), uses.where(_USE.tenant == name)
    made = {row.tenant: _view(row) for row in connection.execute(query)}
    for tenant, state, count in connection.execute(counts):
        if tenant in made and state == QUEUED:
            made[tenant].use.queued = count
        elif tenant in made and state in HELD:
            made[tenant].use.running += count
    for tenant, day, evaluations, cpu_micros, stored_bytes in connection.execute(uses):
        if tenant in made and day == ALL_DAYS:
            made[tenant].use.stored_bytes = stored_bytes
        elif tenant in made:
            made[tenant].use.evaluations_today, made[tenant].use.cpu_seconds_today = evaluations, cpu_micros / 1e6
    return list(made.values())


def _view(row: Any) -> pb.Tenant:
    quota = pb.Quota(**{name: getattr(row, name) for name in SETTINGS})
    return pb.Tenant(name=row.tenant, quota=quota, create_time=timestamp(row.create_time))
