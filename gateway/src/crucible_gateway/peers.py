"""Storage and monitor as the gateway calls them: typed calls, and the errors that a public caller may be told."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from crucible.audit.v1 import audit_pb2
from crucible.evaluation.v1 import batch_pb2
from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.monitor.v1 import monitor_service_pb2 as monitor_api
from crucible.monitor.v1 import monitor_service_pb2_grpc
from crucible.storage.v1 import api_key_service_pb2 as keys
from crucible.storage.v1 import (
    api_key_service_pb2_grpc,
    audit_service_pb2_grpc,
    batch_store_service_pb2_grpc,
    evaluation_store_service_pb2_grpc,
    inspection_service_pb2_grpc,
    queue_service_pb2_grpc,
    status_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from crucible.storage.v1 import audit_service_pb2 as audit
from crucible.storage.v1 import batch_store_service_pb2 as batches
from crucible.storage.v1 import evaluation_store_service_pb2 as store
from crucible.storage.v1 import inspection_service_pb2 as inspections
from crucible.storage.v1 import queue_service_pb2 as queues
from crucible.storage.v1 import status_service_pb2 as status
from crucible.storage.v1 import tenant_service_pb2 as tenants
from crucible_gateway.caller import Caller
from crucible_rpc.errors import (
    CallCancelledError,
    CallError,
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)

RETRY_AFTER = timedelta(seconds=1)
WAIT_MARGIN_SECONDS = 10.0
AUTHENTICATION_SECONDS = 3.0  # before every other call: a storage that hangs must not hold up GetStatus for long


def unavailable(peer: str) -> UnavailableError:
    """What a caller is told when a part cannot be reached."""
    text = f"{peer} cannot be reached now; nothing that was accepted is lost; try again in a moment"
    return UnavailableError("PEER_UNAVAILABLE", text, retry_after=RETRY_AFTER, metadata={"peer": peer})


class peer_errors:  # noqa: N801  # reads as a clause: `with peer_errors("storage"):`
    """Inside the block an error of a peer becomes what a public caller may be told of it.

    What the peer says of the request passes. That it cannot be reached, stops (and may cancel calls) or is too slow
    becomes UNAVAILABLE (PEER_UNAVAILABLE) with its name. That it refuses the gateway itself is a fault of the
    installation: INTERNAL.
    """

    __slots__ = ("_peer",)

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, UnavailableError | DeadlineExceededError | CallCancelledError):
            raise unavailable(self._peer) from error
        if isinstance(error, CallError) and error.reason in ("PEER_UNAUTHENTICATED", "PEER_NOT_PERMITTED"):
            text = f"{self._peer} refuses this gateway; the certificates of this installation do not fit together"
            raise InternalError("INTERNAL", text) from error
        if isinstance(error, ResourceExhaustedError) and error.retry_after is None:
            error.retry_after = RETRY_AFTER


async def is_serving(channel: grpc.aio.Channel, timeout_seconds: float) -> bool:
    """Whether the process at the other end says that it is serving.

    Raises:
        CallError: it does not answer.
    """
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Storage:
    """Storage's services for the gateway. Every method raises what `peer_errors` lets pass.

    Args:
        channel: made by `crucible_rpc.channel.connect`.
    """

    name = "storage"

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._evaluations: Any = evaluation_store_service_pb2_grpc.EvaluationStoreServiceStub(channel)
        self._keys: Any = api_key_service_pb2_grpc.ApiKeyServiceStub(channel)
        self._status: Any = status_service_pb2_grpc.StatusServiceStub(channel)
        self._tenants: Any = tenant_service_pb2_grpc.TenantServiceStub(channel)
        self._queue: Any = queue_service_pb2_grpc.QueueServiceStub(channel)
        self._inspections: Any = inspection_service_pb2_grpc.InspectionStoreServiceStub(channel)
        self._batches: Any = batch_store_service_pb2_grpc.BatchStoreServiceStub(channel)
        self._audit: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
        self._errors = peer_errors(self.name)

    async def inspect(
        self, request: inspections.RunInspectionRequest
    ) -> AsyncGenerator[inspections.RunInspectionResponse, None]:
        """An inspection, followed to its end; it ends when this is closed."""
        with self._errors:
            async with aclosing(aiter(self._inspections.RunInspection(request))) as answers:
                async for answer in answers:
                    yield answer

    async def create(self, request: store.CreateEvaluationRequest) -> ev.Evaluation:
        """Stores an evaluation, and waits for its end as long as the request says."""
        timeout = WAIT_MARGIN_SECONDS + request.wait.seconds
        with self._errors:
            answer: store.CreateEvaluationResponse = await self._evaluations.CreateEvaluation(request, timeout=timeout)
            return answer.evaluation

    async def open_batch(self, request: batches.OpenBatchRequest) -> batch_pb2.Batch:
        """Stores a batch without items."""
        with self._errors:
            answer: batches.OpenBatchResponse = await self._batches.OpenBatch(request)
            return answer.batch

    async def add_items(self, request: batches.AddBatchItemsRequest) -> int:
        """Stores items of a batch; how many it has then."""
        with self._errors:
            answer: batches.AddBatchItemsResponse = await self._batches.AddBatchItems(request)
            return answer.items

    async def complete_batch(self, request: batches.CompleteBatchRequest) -> batch_pb2.Batch:
        """A batch has all its items."""
        with self._errors:
            answer: batches.CompleteBatchResponse = await self._batches.CompleteBatch(request)
            return answer.batch

    async def get_batch(self, tenant: str, name: str) -> batch_pb2.Batch:
        """A batch as it is now."""
        with self._errors:
            request = batches.GetBatchRequest(tenant=tenant, name=name)
            answer: batches.GetBatchResponse = await self._batches.GetBatch(request)
            return answer.batch

    async def list_batches(self, request: batches.ListBatchesRequest) -> batches.ListBatchesResponse:
        """A page of a tenant's batches."""
        with self._errors:
            answer: batches.ListBatchesResponse = await self._batches.ListBatches(request)
            return answer

    async def cancel_batch(self, request: batches.CancelBatchRequest) -> batch_pb2.Batch:
        """Stores the wish to end a batch."""
        with self._errors:
            answer: batches.CancelBatchResponse = await self._batches.CancelBatch(request)
            return answer.batch

    async def watch_batch(self, request: batches.WatchBatchRequest) -> AsyncGenerator[batches.WatchBatchResponse, None]:
        """Results of a batch, until it has ended."""
        with self._errors:
            async with aclosing(aiter(self._batches.WatchBatch(request))) as answers:
                async for answer in answers:
                    yield answer

    async def get(self, tenant: str, name: str) -> ev.Evaluation:
        """An evaluation as it is now."""
        with self._errors:
            request = store.GetEvaluationRequest(tenant=tenant, name=name)
            answer: store.GetEvaluationResponse = await self._evaluations.GetEvaluation(request)
            return answer.evaluation

    async def wait(self, tenant: str, name: str, wait: timedelta) -> ev.Evaluation:
        """An evaluation when it is terminal, or as it is after `wait` (at most 60 s)."""
        request = store.WaitEvaluationRequest(tenant=tenant, name=name)
        request.wait.FromTimedelta(wait)
        timeout = wait.total_seconds() + WAIT_MARGIN_SECONDS
        with self._errors:
            answer: store.WaitEvaluationResponse = await self._evaluations.WaitEvaluation(request, timeout=timeout)
            return answer.evaluation

    async def list_page(self, request: store.ListEvaluationsRequest) -> store.ListEvaluationsResponse:
        """A page of a tenant's evaluations."""
        with self._errors:
            answer: store.ListEvaluationsResponse = await self._evaluations.ListEvaluations(request)
            return answer

    async def cancel(self, request: store.CancelEvaluationRequest) -> ev.Evaluation:
        """Stores the wish to end an evaluation."""
        with self._errors:
            answer: store.CancelEvaluationResponse = await self._evaluations.CancelEvaluation(request)
            return answer.evaluation

    async def delete(self, request: store.DeleteEvaluationRequest) -> store.DeleteEvaluationResponse:
        """Deletes an evaluation that has ended."""
        with self._errors:
            answer: store.DeleteEvaluationResponse = await self._evaluations.DeleteEvaluation(request)
            return answer

    async def read_output(self, request: store.ReadOutputRequest) -> AsyncGenerator[store.ReadOutputResponse, None]:
        """Kept output, as far as it is stored."""
        with self._errors:
            async with aclosing(aiter(self._evaluations.ReadOutput(request))) as answers:
                async for answer in answers:
                    yield answer

    async def usage_samples(self, request: store.ListUsageSamplesRequest) -> store.ListUsageSamplesResponse:
        """What is kept of an attempt's usage over time."""
        with self._errors:
            answer: store.ListUsageSamplesResponse = await self._evaluations.ListUsageSamples(request)
            return answer

    async def authenticate(self, key_sha256: bytes) -> Caller:
        """See `auth.KeyStore`."""
        request = keys.AuthenticateApiKeyRequest(key_sha256=key_sha256)
        with self._errors:
            answer: keys.AuthenticateApiKeyResponse = await self._keys.AuthenticateApiKey(
                request, timeout=AUTHENTICATION_SECONDS
            )
            key = answer.api_key
            return Caller(key_id=key.id, tenant=key.tenant, admin=key.admin)

    async def create_key(self, request: keys.CreateApiKeyRequest) -> keys.StoredApiKey:
        """Stores a key."""
        with self._errors:
            answer: keys.CreateApiKeyResponse = await self._keys.CreateApiKey(request)
            return answer.api_key

    async def list_keys(self) -> list[keys.StoredApiKey]:
        """All keys, oldest first."""
        with self._errors:
            answer: keys.ListApiKeysResponse = await self._keys.ListApiKeys(keys.ListApiKeysRequest())
            return list(answer.api_keys)

    async def revoke_key(self, key_id: str, by: str) -> keys.StoredApiKey:
        """Ends a key; `by` is the id of the key that asks for it."""
        with self._errors:
            request = keys.RevokeApiKeyRequest(id=key_id, by=by)
            answer: keys.RevokeApiKeyResponse = await self._keys.RevokeApiKey(request)
            return answer.api_key

    async def audit_page(self, request: audit.ListAuditRecordsRequest) -> audit.ListAuditRecordsResponse:
        """A page of the audit log."""
        with self._errors:
            answer: audit.ListAuditRecordsResponse = await self._audit.ListAuditRecords(request)
            return answer

    async def verify_audit(self, request: audit.VerifyAuditRequest) -> AsyncGenerator[audit.VerifyAuditResponse, None]:
        """A check of the whole audit log; it ends when this is closed."""
        with self._errors:
            async with aclosing(aiter(self._audit.VerifyAudit(request))) as answers:
                async for answer in answers:
                    yield answer

    async def receipt(self, tenant: str, name: str) -> audit_pb2.Receipt:
        """The receipt of a finished evaluation."""
        with self._errors:
            request = audit.GetReceiptRequest(tenant=tenant, name=name)
            answer: audit.GetReceiptResponse = await self._audit.GetReceipt(request)
            return answer.receipt

    async def public_keys(self) -> list[audit_pb2.PublicKey]:
        """What heads and records can be checked with."""
        with self._errors:
            answer: audit.ListPublicKeysResponse = await self._audit.ListPublicKeys(audit.ListPublicKeysRequest())
            return list(answer.public_keys)

    async def create_tenant(self, request: tenants.CreateTenantRequest) -> tenants.CreateTenantResponse:
        """Makes a tenant."""
        with self._errors:
            answer: tenants.CreateTenantResponse = await self._tenants.CreateTenant(request)
            return answer

    async def list_tenants(self) -> tenants.ListTenantsResponse:
        """All tenants, by name."""
        with self._errors:
            answer: tenants.ListTenantsResponse = await self._tenants.ListTenants(tenants.ListTenantsRequest())
            return answer

    async def set_quota(self, request: tenants.SetQuotaRequest) -> tenants.SetQuotaResponse:
        """Changes quotas."""
        with self._errors:
            answer: tenants.SetQuotaResponse = await self._tenants.SetQuota(request)
            return answer

    async def pause_queue(self, request: queues.PauseQueueRequest) -> queues.PauseQueueResponse:
        """Pauses the queue."""
        with self._errors:
            answer: queues.PauseQueueResponse = await self._queue.PauseQueue(request)
            return answer

    async def resume_queue(self, request: queues.ResumeQueueRequest) -> queues.ResumeQueueResponse:
        """Ends a pause."""
        with self._errors:
            answer: queues.ResumeQueueResponse = await self._queue.ResumeQueue(request)
            return answer

    async def queue_status(self) -> queues.GetQueueStatusResponse:
        """The queue of all tenants."""
        with self._errors:
            request = queues.GetQueueStatusRequest()
            answer: queues.GetQueueStatusResponse = await self._queue.GetQueueStatus(request)
            return answer

    async def dead_letters(self, request: queues.ListDeadLettersRequest) -> queues.ListDeadLettersResponse:
        """A page of dead letters."""
        with self._errors:
            answer: queues.ListDeadLettersResponse = await self._queue.ListDeadLetters(request)
            return answer

    async def retry_dead_letter(self, request: queues.RetryDeadLetterRequest) -> queues.RetryDeadLetterResponse:
        """Makes a new evaluation of a dead letter."""
        with self._errors:
            answer: queues.RetryDeadLetterResponse = await self._queue.RetryDeadLetter(request)
            return answer

    async def executors(self) -> status.ListExecutorsResponse:
        """Every executor that ever registered."""
        with self._errors:
            answer: status.ListExecutorsResponse = await self._status.ListExecutors(status.ListExecutorsRequest())
            return answer

    async def queue(self, tenant: str) -> status.GetQueueResponse:
        """How much work a tenant has."""
        with self._errors:
            answer: status.GetQueueResponse = await self._status.GetQueue(status.GetQueueRequest(tenant=tenant))
            return answer

    async def is_serving(self, timeout_seconds: float) -> bool:
        """See `is_serving`."""
        with self._errors:
            return await is_serving(self._channel, timeout_seconds)


class Monitor:
    """Monitor's service for the gateway. Every method raises what `peer_errors` lets pass.

    Args:
        channel: made by `crucible_rpc.channel.connect`.
    """

    name = "monitor"

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._monitor: Any = monitor_service_pb2_grpc.MonitorServiceStub(channel)
        self._errors = peer_errors(self.name)

    async def watch(
        self, tenant: str, name: str, after_position: int
    ) -> AsyncGenerator[monitor_api.WatchResponse, None]:
        """One evaluation's events after a position; ends after the terminal one."""
        request = monitor_api.WatchRequest(tenant=tenant, evaluation=name, after_position=after_position)
        with self._errors:
            async with aclosing(aiter(self._monitor.Watch(request))) as answers:
                async for answer in answers:
                    yield answer

    async def is_serving(self, timeout_seconds: float) -> bool:
        """See `is_serving`."""
        with self._errors:
            return await is_serving(self._channel, timeout_seconds)
