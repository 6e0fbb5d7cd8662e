"""Tenants, their quotas, and the queue of all: the calls for administrators, and what they answer as plain values."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from crucible.evaluation.v1 import tenant_pb2 as pb
from crucible.gateway.v1 import admin_service_pb2 as admin
from crucible_client import convert, results
from crucible_client.calls import Call, full_name


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use, and its share of the slots. None: left as it is; 0: no such quota.

    Attributes:
        weight: of its share of slots, 1 to 1000.
        max_priority: that its evaluations may ask for, -100 to 100.
        max_running: runs under way; what is beyond it waits.
        max_queued: evaluations that wait.
        evaluations_per_day: created since midnight UTC.
        cpu_seconds_per_day: of attempts that ended since midnight UTC.
        max_stored_bytes: of programs and output of all stored evaluations.
    """

    weight: int | None = None
    max_priority: int | None = None
    max_running: int | None = None
    max_queued: int | None = None
    evaluations_per_day: int | None = None
    cpu_seconds_per_day: int | None = None
    max_stored_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """What a tenant uses now; days begin at midnight UTC."""

    running: int
    queued: int
    evaluations_today: int
    cpu_seconds_today: float
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; every field of its quota is set."""

    name: str
    quota: Quota
    use: QuotaUse
    create_time: datetime | None


@dataclass(frozen=True, slots=True)
class QueuePause:
    """That no work of a tenant is given to executors; `tenant` is empty where that holds for everybody."""

    tenant: str
    by: str
    reason: str
    time: datetime | None


@dataclass(frozen=True, slots=True)
class TenantQueue:
    """The work of one tenant; `oldest_create_time` is None when nothing waits."""

    tenant: str
    queued: int
    running: int
    weight: int
    max_running: int
    oldest_create_time: datetime | None


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue of all tenants; `dead_letters` are those that were not retried."""

    queued: int
    max_queued: int
    running: int
    tenants: tuple[TenantQueue, ...]
    pauses: tuple[QueuePause, ...]
    dead_letters: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An evaluation that ended as an infrastructure failure; `retried_as` is None when it was not retried."""

    evaluation: str
    tenant: str
    create_time: datetime | None
    end_time: datetime | None
    attempts: int
    reason: str
    failed_attempts: tuple[results.FailedAttempt, ...]
    retried_as: str | None


@dataclass(frozen=True, slots=True)
class Retried:
    """The evaluation that was made of a dead letter; `repeated`: by an earlier call."""

    evaluation: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """One page of a list; `next_token` is empty on the last."""

    dead_letters: tuple[DeadLetter, ...]
    next_token: str


def create_tenant(name: str, quota: Quota) -> Call[Tenant]:
    """`CreateTenant`; not repeated, as a second call would find the first one's tenant."""
    request = admin.CreateTenantRequest(tenant=name, quota=_quota_message(quota))
    return Call(lambda stubs: stubs.admin.CreateTenant, request, _answered_tenant, repeatable=False)


def list_tenants() -> Call[tuple[Tenant, ...]]:
    """`ListTenants`."""
    return Call(
        lambda stubs: stubs.admin.ListTenants,
        admin.ListTenantsRequest(),
        lambda answer: tuple(_tenant(message) for message in answer.tenants),
    )


def set_quota(name: str, quota: Quota) -> Call[Tenant]:
    """`SetQuota`."""
    request = admin.SetQuotaRequest(tenant=name, quota=_quota_message(quota))
    return Call(lambda stubs: stubs.admin.SetQuota, request, _answered_tenant)


def pause_queue(tenant: str, reason: str) -> Call[QueuePause]:
    """`PauseQueue`."""
    request = admin.PauseQueueRequest(tenant=tenant, reason=reason)
    return Call(lambda stubs: stubs.admin.PauseQueue, request, lambda answer: _pause(answer.pause))


def resume_queue(tenant: str) -> Call[QueuePause | None]:
    """`ResumeQueue`."""
    request = admin.ResumeQueueRequest(tenant=tenant)
    return Call(
        lambda stubs: stubs.admin.ResumeQueue,
        request,
        lambda answer: _pause(answer.ended) if answer.HasField("ended") else None,
    )


def queue() -> Call[Queue]:
    """`GetQueueStatus`."""
    return Call(lambda stubs: stubs.admin.GetQueueStatus, admin.GetQueueStatusRequest(), _queue)


def dead_letters_page(tenant: str, page_size: int, page_token: str, *, retried: bool) -> Call[DeadLetterPage]:
    """`ListDeadLetters`."""
    request = admin.ListDeadLettersRequest(tenant=tenant, page_size=page_size, page_token=page_token, retried=retried)
    return Call(
        lambda stubs: stubs.admin.ListDeadLetters,
        request,
        lambda answer: DeadLetterPage(tuple(map(_dead_letter, answer.dead_letters)), answer.next_page_token),
    )


def retry_dead_letter(name: str) -> Call[Retried]:
    """`RetryDeadLetter`."""
    request = admin.RetryDeadLetterRequest(name=full_name(name))
    return Call(
        lambda stubs: stubs.admin.RetryDeadLetter,
        request,
        lambda answer: Retried(answer.evaluation, answer.repeated_call),
    )


def _quota_message(quota: Quota) -> pb.Quota:
    given = {field.name: getattr(quota, field.name) for field in fields(quota)}
    return pb.Quota(**{name: value for name, value in given.items() if value is not None})


def _answered_tenant(answer: Any) -> Tenant:
    return _tenant(answer.tenant)


def _tenant(message: pb.Tenant) -> Tenant:
    quota, use = message.quota, message.use
    return Tenant(
        name=message.name,
        quota=Quota(**{field.name: getattr(quota, field.name) for field in fields(Quota)}),
        use=QuotaUse(use.running, use.queued, use.evaluations_today, use.cpu_seconds_today, use.stored_bytes),
        create_time=convert.time(message, "create_time"),
    )


def _pause(message: pb.QueuePause) -> QueuePause:
    return QueuePause(message.tenant, message.by, message.reason, convert.time(message, "time"))


def _queue(answer: admin.GetQueueStatusResponse) -> Queue:
    return Queue(
        queued=answer.queued,
        max_queued=answer.max_queued,
        running=answer.running,
        tenants=tuple(
            TenantQueue(
                tenant=one.tenant,
                queued=one.queued,
                running=one.running,
                weight=one.weight,
                max_running=one.max_running,
                oldest_create_time=convert.time(one, "oldest_create_time"),
            )
            for one in answer.tenants
        ),
        pauses=tuple(map(_pause, answer.pauses)),
        dead_letters=answer.dead_letters,
    )


def _dead_letter(message: pb.DeadLetter) -> DeadLetter:
    return DeadLetter(
        evaluation=message.evaluation,
        tenant=message.tenant,
        create_time=convert.time(message, "create_time"),
        end_time=convert.time(message, "end_time"),
        attempts=message.attempts,
        reason=message.reason,
        failed_attempts=tuple(map(convert.failed_attempt, message.failed_attempts)),
        retried_as=message.retried_as or None,
    )
