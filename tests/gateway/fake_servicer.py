"""Storage and monitor in memory, served by real servers over mutual TLS, and the certificates for all of it."""

import asyncio
import hashlib
import uuid
from datetime import timedelta

from prometheus_client import CollectorRegistry

from crucible.audit.v1 import audit_pb2
from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import event_pb2, tenant_pb2
from crucible.evaluation.v1 import platform_pb2 as platform
from crucible.monitor.v1 import monitor_service_pb2 as monitor_api
from crucible.monitor.v1 import monitor_service_pb2_grpc
from crucible.storage.v1 import (
    api_key_service_pb2 as keys_api,
)
from crucible.storage.v1 import (
    api_key_service_pb2_grpc,
    audit_service_pb2_grpc,
    evaluation_store_service_pb2_grpc,
    inspection_service_pb2_grpc,
    queue_service_pb2_grpc,
    status_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from crucible.storage.v1 import (
    audit_service_pb2 as audit_api,
)
from crucible.storage.v1 import (
    evaluation_store_service_pb2 as store_api,
)
from crucible.storage.v1 import (
    inspection_service_pb2 as inspection_api,
)
from crucible.storage.v1 import (
    queue_service_pb2 as queue_api,
)
from crucible.storage.v1 import (
    status_service_pb2 as status_api,
)
from crucible.storage.v1 import (
    tenant_service_pb2 as tenant_api,
)
from crucible_rpc import pki
from crucible_rpc.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ClientTls, ServerTls

MIB = 1 << 20
FINISHED = {ev.EVALUATION_STATE_SUCCEEDED, ev.EVALUATION_STATE_FAILED, ev.EVALUATION_STATE_CANCELLED}
ALL_LIMITS = [limit for limit in ev.Limit.values() if limit not in (0, ev.LIMIT_DISK_INODES)]


class Keys:
    """The certificates of one installation, as files."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = pki.make_ca()
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self.authority.cert_pem)

    def files(self, process):
        cert, key = self.folder / f"{process}.crt", self.folder / f"{process}.key"
        if not cert.exists():
            made = pki.issue(self.authority, process, dns=["localhost"], ips=["127.0.0.1"])
            cert.write_bytes(made.cert_pem)
            key.write_bytes(made.key_pem)
        return cert, key, self.ca

    def server(self, process):
        return ServerTls(*self.files(process))

    def client(self, process):
        return ClientTls(*self.files(process))


def an_executor(id_="x1", *, live=True, engines=None, runtimes=("python",), lacks=(), **ceilings):
    """A registered executor: gvisor, which enforces everything but inodes, and subprocess, which is not there.

    It has `runtimes`, and knows those that it lacks the image of.
    """
    limits = ev.Limits(
        **{"memory_bytes": 2048 * MIB, "cpus": 2.0, "processes": 256, "output_bytes": 16 * MIB, **ceilings}
    )
    limits.wall_time.seconds = 300
    registered = status_api.RegisteredExecutor(live=live)
    registered.executor.CopyFrom(
        platform.Executor(
            id=id_,
            boot_id="b",
            engines=engines
            or [
                platform.Engine(name="gvisor", version="1", isolation=3, enforces=ALL_LIMITS, available=True),
                platform.Engine(name="subprocess", isolation=1, unavailable_reason="start it with --unsafe"),
            ],
            default_engine="gvisor",
            runtimes=[
                *(platform.Runtime(name=name, image="base", command=[name]) for name in runtimes),
                *(platform.Runtime(name=name, unavailable_reason=f"build the image of {name}") for name in lacks),
            ],
            ceilings=limits,
            slots=4,
        )
    )
    registered.last_seen_time.GetCurrentTime()
    return registered


class FakeStore(
    evaluation_store_service_pb2_grpc.EvaluationStoreServiceServicer,
    api_key_service_pb2_grpc.ApiKeyServiceServicer,
    status_service_pb2_grpc.StatusServiceServicer,
    inspection_service_pb2_grpc.InspectionStoreServiceServicer,
    audit_service_pb2_grpc.AuditServiceServicer,
    tenant_service_pb2_grpc.TenantServiceServicer,
    queue_service_pb2_grpc.QueueServiceServicer,
):
    """What the gateway needs of storage. With `finish` set an evaluation succeeds when it is waited for."""

    def __init__(self):
        self.evaluations = {}
        self.by_request = {}
        self.requests = []
        self.keys = {}
        self.executors = [an_executor()]
        self.finish = True
        self.authentications = 0
        self.listings = 0
        self.usage_samples = store_api.ListUsageSamplesResponse()
        self.lose_answers = 0
        self.waiting = asyncio.Event()
        self.waits = 0
        self.cancelled_waits = 0
        self.administered = []
        self.admin_error = None
        self.create_error = None
        self.inspections = []
        self.found = []
        self.inspection_error = None
        self.inspection_endless = False
        self.inspection_left = asyncio.Event()
        self.audit_requests = []
        self.verify_endless = False
        self.verify_left = asyncio.Event()
        self.key_requests = []

    async def RunInspection(self, request, context):
        self.inspections.append(request)
        if self.inspection_error is not None:
            raise self.inspection_error
        try:
            for answer in self.found:
                yield answer
            if self.inspection_endless:
                await asyncio.Event().wait()
        finally:
            self.inspection_left.set()

    async def ListAuditRecords(self, request, context):
        self.audit_requests.append(request)
        records = [audit_pb2.LoggedRecord(position=2), audit_pb2.LoggedRecord(position=1)]
        return audit_api.ListAuditRecordsResponse(records=records, next_page_token="more")

    async def VerifyAudit(self, request, context):
        self.audit_requests.append(request)
        try:
            yield audit_api.VerifyAuditResponse(records=1000)
            finding = audit_pb2.AuditFinding(fault=audit_pb2.AUDIT_FAULT_CHANGED, position=17, message="changed")
            yield audit_api.VerifyAuditResponse(finding=finding)
            if self.verify_endless:
                await asyncio.Event().wait()
            yield audit_api.VerifyAuditResponse(summary=audit_pb2.AuditSummary(records=1000, findings=1))
        finally:
            self.verify_left.set()

    async def GetReceipt(self, request, context):
        self._find(request.tenant, request.name)
        return audit_api.GetReceiptResponse(receipt=audit_pb2.Receipt(position=7))

    async def ListPublicKeys(self, request, context):
        return audit_api.ListPublicKeysResponse(public_keys=[audit_pb2.PublicKey(key_id="k", current=True)])

    def add_key(self, text, tenant, *, admin=False):
        key = keys_api.StoredApiKey(id=f"key-{len(self.keys)}", tenant=tenant, admin=admin)
        self.keys[hashlib.sha256(text.encode()).digest()] = key
        return key.id

    def _find(self, tenant, name):
        evaluation = self.evaluations.get(name)
        if evaluation is None or evaluation.tenant != tenant:
            raise NotFoundError("EVALUATION_NOT_FOUND", f"there is no evaluation {name}")
        return evaluation

    async def CreateEvaluation(self, request, context):
        self.requests.append(request)
        if self.create_error is not None:
            raise self.create_error
        before = self.by_request.get((request.tenant, request.request_id)) if request.request_id else None
        if before is None:
            evaluation = ev.Evaluation(
                name=f"evaluations/{uuid.uuid4()}",
                tenant=request.tenant,
                creator=request.creator,
                spec=request.spec,
                state=ev.EVALUATION_STATE_QUEUED,
                version=1,
                labels=request.spec.labels,
            )
            self.evaluations[evaluation.name] = before = evaluation
            self.by_request[request.tenant, request.request_id] = evaluation
        elif before.spec != request.spec:
            raise AlreadyExistsError("REQUEST_ID_REUSED", "this request_id was used with another spec")
        if self.lose_answers:
            self.lose_answers -= 1
            raise UnavailableError("LOST", "the answer got lost")
        if request.HasField("wait"):
            await self._wait(before, request.wait)
        return store_api.CreateEvaluationResponse(evaluation=before)

    async def GetEvaluation(self, request, context):
        return store_api.GetEvaluationResponse(evaluation=self._find(request.tenant, request.name))

    async def WaitEvaluation(self, request, context):
        self.waits += 1
        evaluation = self._find(request.tenant, request.name)
        await self._wait(evaluation, request.wait)
        return store_api.WaitEvaluationResponse(evaluation=evaluation)

    async def _wait(self, evaluation, wait):
        self.waiting.set()
        if self.finish:
            evaluation.state = ev.EVALUATION_STATE_SUCCEEDED
            evaluation.termination.exited.code = 0
            return
        try:
            await asyncio.sleep(wait.ToTimedelta().total_seconds())
        except asyncio.CancelledError:
            self.cancelled_waits += 1
            raise

    async def ListEvaluations(self, request, context):
        if request.page_token and not request.page_token.isdecimal():
            raise InvalidArgumentError("INVALID_PAGE_TOKEN", "this page token was not made for this list")
        own = [each for each in self.evaluations.values() if each.tenant == request.tenant]
        own = [each for each in reversed(own) if not request.states or each.state in request.states]
        start = int(request.page_token or 0)
        end = start + request.page_size
        token = str(end) if end < len(own) else ""
        return store_api.ListEvaluationsResponse(evaluations=own[start:end], next_page_token=token)

    async def CancelEvaluation(self, request, context):
        evaluation = self._find(request.tenant, request.name)
        if evaluation.state not in FINISHED:
            evaluation.state = ev.EVALUATION_STATE_CANCELLED
            evaluation.termination.cancelled.by = request.by
            evaluation.termination.cancelled.reason = request.reason
        return store_api.CancelEvaluationResponse(evaluation=evaluation)

    async def DeleteEvaluation(self, request, context):
        evaluation = self.evaluations.get(request.name)
        if evaluation is None:
            raise NotFoundError("EVALUATION_NOT_FOUND", f"there is no evaluation {request.name}")
        if evaluation.state not in FINISHED:
            raise FailedPreconditionError("EVALUATION_NOT_TERMINAL", "it has not ended")
        answer = store_api.DeleteEvaluationResponse(tenant=evaluation.tenant)
        answer.deleted.by, answer.deleted.reason = request.by, request.reason
        answer.delete_time.GetCurrentTime()
        return answer

    async def ReadOutput(self, request, context):
        self._find(request.tenant, request.name)
        data = b"".join(b"%d " % number for number in range(50_000))
        for offset in range(request.offset, len(data), 65_536):
            yield store_api.ReadOutputResponse(offset=offset, data=data[offset : offset + 65_536])

    async def ListUsageSamples(self, request, context):
        self._find(request.tenant, request.name)
        self.requests.append(request)
        return self.usage_samples

    async def AuthenticateApiKey(self, request, context):
        self.authentications += 1
        key = self.keys.get(request.key_sha256)
        if key is None or key.HasField("revoke_time"):
            raise UnauthenticatedError("INVALID_API_KEY", "this API key is not known or was revoked")
        return keys_api.AuthenticateApiKeyResponse(api_key=key)

    async def CreateApiKey(self, request, context):
        self.key_requests.append(request)
        key = keys_api.StoredApiKey(
            id=f"key-{len(self.keys)}", tenant=request.tenant, admin=request.admin, description=request.description
        )
        self.keys[request.key_sha256] = key
        return keys_api.CreateApiKeyResponse(api_key=key)

    async def ListApiKeys(self, request, context):
        return keys_api.ListApiKeysResponse(api_keys=self.keys.values())

    async def RevokeApiKey(self, request, context):
        self.key_requests.append(request)
        for key in self.keys.values():
            if key.id == request.id:
                key.revoke_time.GetCurrentTime()
                return keys_api.RevokeApiKeyResponse(api_key=key)
        raise NotFoundError("API_KEY_NOT_FOUND", "there is no such API key")

    async def CreateTenant(self, request, context):
        self.administered.append(request)
        if self.admin_error is not None:
            raise self.admin_error
        return tenant_api.CreateTenantResponse(tenant=tenant_pb2.Tenant(name=request.tenant, quota=request.quota))

    async def ListTenants(self, request, context):
        self.administered.append(request)
        return tenant_api.ListTenantsResponse(tenants=[tenant_pb2.Tenant(name="acme")])

    async def SetQuota(self, request, context):
        self.administered.append(request)
        return tenant_api.SetQuotaResponse(tenant=tenant_pb2.Tenant(name=request.tenant, quota=request.quota))

    async def PauseQueue(self, request, context):
        self.administered.append(request)
        pause = tenant_pb2.QueuePause(tenant=request.tenant, by=request.by, reason=request.reason)
        return queue_api.PauseQueueResponse(pause=pause)

    async def ResumeQueue(self, request, context):
        self.administered.append(request)
        return queue_api.ResumeQueueResponse()

    async def GetQueueStatus(self, request, context):
        self.administered.append(request)
        tenants = [tenant_pb2.TenantQueue(tenant="acme", queued=2, running=1)]
        pauses = [tenant_pb2.QueuePause(by="key-0")]
        return queue_api.GetQueueStatusResponse(
            queued=2, max_queued=9, running=1, tenants=tenants, pauses=pauses, dead_letters=3
        )

    async def ListDeadLetters(self, request, context):
        self.administered.append(request)
        letters = [tenant_pb2.DeadLetter(tenant="acme", reason="gone")]
        return queue_api.ListDeadLettersResponse(dead_letters=letters, next_page_token="more")

    async def RetryDeadLetter(self, request, context):
        self.administered.append(request)
        return queue_api.RetryDeadLetterResponse(evaluation="evaluations/new", repeated_call=True)

    async def ListExecutors(self, request, context):
        self.listings += 1
        return status_api.ListExecutorsResponse(executors=self.executors, max_attempts=3)

    async def GetQueue(self, request, context):
        own = [each for each in self.evaluations.values() if each.tenant == request.tenant]
        finished = sum(each.state in FINISHED for each in own)
        return status_api.GetQueueResponse(queued=len(own) - finished, finished=finished)


class FakeMonitor(monitor_service_pb2_grpc.MonitorServiceServicer):
    """Sends what it is told to, then ends, or goes on without an end when `endless`."""

    def __init__(self):
        self.requests = []
        self.answers = [monitor_api.WatchResponse(event=event_pb2.Event(position=1))]
        self.endless = False
        self.left = asyncio.Event()

    async def Watch(self, request, context):
        self.requests.append(request)
        try:
            for answer in self.answers:
                yield answer
            if self.endless:
                await asyncio.Event().wait()
        finally:
            self.left.set()


class FakePeer:
    """A process with one server that can go away and come back at the same address."""

    def __init__(self, process, keys, *services):
        self.process = process
        self.port = 0
        self.callers = frozenset({"gateway"})
        self._keys = keys
        self._services = services
        self._server = None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    async def start(self):
        methods = {
            f"/{descriptor.full_name}/{method.name}": self.callers
            for descriptor, _, _ in self._services
            for method in descriptor.methods
        }
        self._server = Server(
            self.process,
            self.address,
            self._keys.server(self.process),
            authentication=PeerPermissions(methods),
            registry=CollectorRegistry(),
        )
        for _, adder, servicer in self._services:
            self._server.add(adder, servicer)
        self.port = await self._server.start()

    async def stop(self):
        await self._server.drain(timedelta(0))


def fake_storage(keys, store):
    return FakePeer(
        "storage",
        keys,
        (
            store_api.DESCRIPTOR.services_by_name["EvaluationStoreService"],
            evaluation_store_service_pb2_grpc.add_EvaluationStoreServiceServicer_to_server,
            store,
        ),
        (
            keys_api.DESCRIPTOR.services_by_name["ApiKeyService"],
            api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server,
            store,
        ),
        (
            status_api.DESCRIPTOR.services_by_name["StatusService"],
            status_service_pb2_grpc.add_StatusServiceServicer_to_server,
            store,
        ),
        (
            inspection_api.DESCRIPTOR.services_by_name["InspectionStoreService"],
            inspection_service_pb2_grpc.add_InspectionStoreServiceServicer_to_server,
            store,
        ),
        (
            audit_api.DESCRIPTOR.services_by_name["AuditService"],
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
            store,
        ),
        (
            tenant_api.DESCRIPTOR.services_by_name["TenantService"],
            tenant_service_pb2_grpc.add_TenantServiceServicer_to_server,
            store,
        ),
        (
            queue_api.DESCRIPTOR.services_by_name["QueueService"],
            queue_service_pb2_grpc.add_QueueServiceServicer_to_server,
            store,
        ),
    )


def fake_monitor(keys, monitor):
    return FakePeer(
        "monitor",
        keys,
        (
            monitor_api.DESCRIPTOR.services_by_name["MonitorService"],
            monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server,
            monitor,
        ),
    )
