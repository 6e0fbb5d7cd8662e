"""What administrators do with tenants and with the queue: the rules between a valid request and storage."""

from typing import Protocol

from crucible.gateway.v1 import admin_service_pb2 as api
from crucible.storage.v1 import queue_service_pb2 as queues
from crucible.storage.v1 import tenant_service_pb2 as tenants
from crucible_gateway.caller import Caller
from crucible_gateway.validation import DEFAULT_PAGE_SIZE


class QueueStore(Protocol):
    """What is needed of storage."""

    async def create_tenant(self, request: tenants.CreateTenantRequest) -> tenants.CreateTenantResponse: ...  # noqa: D102
    async def list_tenants(self) -> tenants.ListTenantsResponse: ...  # noqa: D102
    async def set_quota(self, request: tenants.SetQuotaRequest) -> tenants.SetQuotaResponse: ...  # noqa: D102
    async def pause_queue(self, request: queues.PauseQueueRequest) -> queues.PauseQueueResponse: ...  # noqa: D102
    async def resume_queue(self, request: queues.ResumeQueueRequest) -> queues.ResumeQueueResponse: ...  # noqa: D102
    async def queue_status(self) -> queues.GetQueueStatusResponse: ...  # noqa: D102
    async def dead_letters(self, request: queues.ListDeadLettersRequest) -> queues.ListDeadLettersResponse: ...  # noqa: D102
    async def retry_dead_letter(  # noqa: D102
        self, request: queues.RetryDeadLetterRequest
    ) -> queues.RetryDeadLetterResponse: ...


class QueueControl:
    """Tenants, quotas, pauses and dead letters of the installation. Every method raises what storage says."""

    def __init__(self, storage: QueueStore) -> None:
        self._storage = storage

    async def create_tenant(self, caller: Caller, request: api.CreateTenantRequest) -> api.CreateTenantResponse:
        """Makes a tenant."""
        made = await self._storage.create_tenant(
            tenants.CreateTenantRequest(tenant=request.tenant, quota=request.quota, by=caller.key_id)
        )
        return api.CreateTenantResponse(tenant=made.tenant)

    async def list_tenants(self) -> api.ListTenantsResponse:
        """All tenants, by name."""
        return api.ListTenantsResponse(tenants=(await self._storage.list_tenants()).tenants)

    async def set_quota(self, caller: Caller, request: api.SetQuotaRequest) -> api.SetQuotaResponse:
        """Changes what is set."""
        changed = await self._storage.set_quota(
            tenants.SetQuotaRequest(tenant=request.tenant, quota=request.quota, by=caller.key_id)
        )
        return api.SetQuotaResponse(tenant=changed.tenant)

    async def pause(self, caller: Caller, request: api.PauseQueueRequest) -> api.PauseQueueResponse:
        """Gives no more work to executors."""
        paused = await self._storage.pause_queue(
            queues.PauseQueueRequest(tenant=request.tenant, by=caller.key_id, reason=request.reason)
        )
        return api.PauseQueueResponse(pause=paused.pause)

    async def resume(self, caller: Caller, request: api.ResumeQueueRequest) -> api.ResumeQueueResponse:
        """Ends a pause."""
        answer = await self._storage.resume_queue(queues.ResumeQueueRequest(tenant=request.tenant, by=caller.key_id))
        return api.ResumeQueueResponse(ended=answer.ended if answer.HasField("ended") else None)

    async def status(self) -> api.GetQueueStatusResponse:
        """The queue of all tenants."""
        now = await self._storage.queue_status()
        return api.GetQueueStatusResponse(
            queued=now.queued,
            max_queued=now.max_queued,
            running=now.running,
            tenants=now.tenants,
            pauses=now.pauses,
            dead_letters=now.dead_letters,
        )

    async def dead_letters(self, request: api.ListDeadLettersRequest) -> api.ListDeadLettersResponse:
        """A page, the newest end first."""
        page = await self._storage.dead_letters(
            queues.ListDeadLettersRequest(
                tenant=request.tenant,
                page_size=request.page_size or DEFAULT_PAGE_SIZE,
                page_token=request.page_token,
                retried=request.retried,
            )
        )
        return api.ListDeadLettersResponse(dead_letters=page.dead_letters, next_page_token=page.next_page_token)

    async def retry(self, caller: Caller, name: str) -> api.RetryDeadLetterResponse:
        """Makes a new evaluation of a dead letter, once."""
        made = await self._storage.retry_dead_letter(queues.RetryDeadLetterRequest(name=name, by=caller.key_id))
        return api.RetryDeadLetterResponse(evaluation=made.evaluation, repeated_call=made.repeated_call)
