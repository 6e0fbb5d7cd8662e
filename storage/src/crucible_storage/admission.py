"""Whether new evaluations are taken: the bound of the queue, their tenant's highest priority and quotas.

Checked in the transaction that stores them, against counters that the same transactions keep. One statement
reads all that is known of a tenant, once per group commit; what the group adds is added in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, select, text

from crucible_rpc.errors import ResourceExhaustedError
from crucible_storage import models, tenants
from crucible_storage.lifecycle import QUEUED
from crucible_storage.names import invalid
from crucible_storage.policy import Policy
from crucible_storage.prepared import Prepared
from crucible_storage.transaction import WriteTransaction
from crucible_storage.usage import ALL_DAYS, day_of, midnight_after

SOON = timedelta(seconds=5)
"""When to try again where room comes as work is done."""

LATER = timedelta(minutes=10)
"""When to try again where room comes only as somebody deletes, or retention does."""

_ACCOUNT = Prepared(
    text(
        """
    SELECT t.max_priority, t.max_queued, t.evaluations_per_day, t.cpu_seconds_per_day, t.max_stored_bytes,
           coalesce(c.count, 0), coalesce(d.evaluations, 0), coalesce(d.cpu_micros, 0), coalesce(a.stored_bytes, 0)
    FROM tenant AS t
    LEFT JOIN evaluation_count AS c ON c.tenant = t.tenant AND c.state = 1
    LEFT JOIN tenant_use AS d ON d.tenant = t.tenant AND d.day = :day
    LEFT JOIN tenant_use AS a ON a.tenant = t.tenant AND a.day = 0
    WHERE t.tenant = :tenant
    """
    )
)
_ROW = models.tenant.c
_LOCK = select(_ROW.tenant).where(_ROW.tenant == bindparam("tenant")).with_for_update()


@dataclass(frozen=True, slots=True)
class _Account:
    """A tenant's quotas, and what it used as of the last commit."""

    max_priority: int
    max_queued: int
    evaluations_per_day: int
    cpu_seconds_per_day: int
    max_stored_bytes: int
    queued: int
    evaluations: int
    cpu_micros: int
    stored_bytes: int

    @property
    def limited(self) -> bool:
        return bool(self.max_queued or self.evaluations_per_day or self.cpu_seconds_per_day or self.max_stored_bytes)


def admit(
    transaction: WriteTransaction,
    policy: Policy,
    tenant: str,
    now: int,
    *,
    priority: int,
    stored_bytes: int,
    count: int = 1,
) -> None:
    """Lets evaluations in and counts them, all or none; call it right before they are inserted.

    Args:
        transaction: the one that inserts them.
        policy: how much may wait.
        tenant: whose; made here when it is new.
        now: their time of creation.
        priority: the highest that one of them asks for.
        stored_bytes: the size of their programs together.
        count: how many.

    Raises:
        InvalidArgumentError: INVALID_FIELD, `spec.priority` is above the tenant's ceiling.
        ResourceExhaustedError: QUEUE_FULL or QUOTA_EXCEEDED.
    """
    highest = _account(transaction, tenant, now).max_priority
    if priority > highest:
        raise invalid("spec.priority", f"must be at most {highest}, the highest that this tenant may use")
    refused = refusal(transaction, policy, tenant, now, count=count, stored_bytes=stored_bytes)
    if refused is not None:
        raise refused
    transaction.usage.created(tenant, now, count, stored_bytes)


def fitting(transaction: WriteTransaction, policy: Policy, tenant: str, now: int, sizes: Sequence[int]) -> int:
    """How many evaluations `admit` would let in now, of some whose programs have these sizes, from the first on."""
    least, most = 0, len(sizes)
    while least < most:
        middle = (least + most + 1) // 2
        if refusal(transaction, policy, tenant, now, count=middle, stored_bytes=sum(sizes[:middle])) is None:
            least = middle
        else:
            most = middle - 1
    return least


def refusal(
    transaction: WriteTransaction, policy: Policy, tenant: str, now: int, *, count: int, stored_bytes: int
) -> ResourceExhaustedError | None:
    """What `admit` would raise for want of room; None when there is room."""
    account = _account(transaction, tenant, now)
    if transaction.queued + count > policy.max_queued:
        message = f"{transaction.queued} evaluations are queued, {policy.max_queued} may be; try again later"
        facts = {"limit": str(policy.max_queued), "use": str(transaction.queued)}
        return ResourceExhaustedError("QUEUE_FULL", message, retry_after=SOON, metadata=facts)
    return _over_quota(transaction, account, tenant, now, count, stored_bytes) if account.limited else None


def _account(transaction: WriteTransaction, tenant: str, now: int) -> _Account:
    known = transaction.usage.accounts
    key = (tenant, day_of(now))
    account: _Account | None = known.get(key)
    if account is None:
        account = known[key] = _read(transaction, tenant, now)
    return account


def _read(transaction: WriteTransaction, tenant: str, now: int) -> _Account:
    wanted = {"tenant": tenant, "day": day_of(now)}
    row = _ACCOUNT.first(transaction.connection, wanted)
    if row is None:
        tenants.ensure(transaction, tenant, now)
        row = _ACCOUNT.first(transaction.connection, wanted)
    account = _account_of(row)
    if account.limited and transaction.shared:
        transaction.execute(_LOCK, {"tenant": tenant})
        account = _account_of(_ACCOUNT.first(transaction.connection, wanted))
    return account


def _account_of(row: Any) -> _Account:
    return _Account(*row)


def _over_quota(
    transaction: WriteTransaction, account: _Account, tenant: str, now: int, count: int, stored_bytes: int
) -> ResourceExhaustedError | None:
    today, cpu_today, _ = transaction.usage.added(tenant, day_of(now))
    queued = account.queued + transaction.counts.get((tenant, QUEUED), 0)
    created, cpu_micros = account.evaluations + today, account.cpu_micros + cpu_today
    stored = account.stored_bytes + transaction.usage.added(tenant, ALL_DAYS)[2]
    tomorrow = timedelta(microseconds=midnight_after(now) - now)
    if 0 < account.max_queued < queued + count:
        return _refused("max_queued", account.max_queued, queued, "evaluations are queued", SOON)
    if 0 < account.evaluations_per_day < created + count:
        return _refused(
            "evaluations_per_day", account.evaluations_per_day, created, "evaluations were created today", tomorrow
        )
    if 0 < account.cpu_seconds_per_day * 1_000_000 <= cpu_micros:
        used = cpu_micros // 1_000_000
        return _refused(
            "cpu_seconds_per_day", account.cpu_seconds_per_day, used, "CPU seconds were used today", tomorrow
        )
    if 0 < account.max_stored_bytes < stored + stored_bytes:
        return _refused("max_stored_bytes", account.max_stored_bytes, stored, "bytes are stored", LATER)
    return None


def _refused(quota: str, limit: int, use: int, what: str, retry_after: timedelta) -> ResourceExhaustedError:
    when = "at midnight UTC" if quota.endswith("_per_day") else "later"
    message = f"this tenant's quota {quota} is used up: {use} {what}, {limit} may be; try again {when}"
    facts = {"quota": quota, "limit": str(limit), "use": str(use)}
    return ResourceExhaustedError("QUOTA_EXCEEDED", message, retry_after=retry_after, metadata=facts)
