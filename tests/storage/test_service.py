"""The RPCs through a real server with mutual TLS, and the process as it is started."""

import asyncio
import hashlib
import signal
import sys
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from crucible.audit.v1 import audit_pb2 as audit_v1
from crucible.evaluation.v1 import error_reason_pb2
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.tenant_pb2 import Quota
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import api_key_service_pb2 as key_pb
from crucible.storage.v1 import audit_service_pb2 as audit_pb
from crucible.storage.v1 import batch_store_service_pb2 as batch_pb
from crucible.storage.v1 import evaluation_store_service_pb2 as store_pb
from crucible.storage.v1 import event_log_service_pb2 as log_pb
from crucible.storage.v1 import queue_service_pb2 as queue_pb
from crucible.storage.v1 import status_service_pb2 as status_pb
from crucible.storage.v1 import tenant_service_pb2 as tenant_pb
from crucible.storage.v1 import work_service_pb2 as work
from crucible.storage.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from crucible.storage.v1.audit_service_pb2_grpc import AuditServiceStub
from crucible.storage.v1.batch_store_service_pb2_grpc import BatchStoreServiceStub
from crucible.storage.v1.evaluation_store_service_pb2_grpc import EvaluationStoreServiceStub
from crucible.storage.v1.event_log_service_pb2_grpc import EventLogServiceStub
from crucible.storage.v1.queue_service_pb2_grpc import QueueServiceStub
from crucible.storage.v1.status_service_pb2_grpc import StatusServiceStub
from crucible.storage.v1.tenant_service_pb2_grpc import TenantServiceStub
from crucible.storage.v1.work_service_pb2_grpc import WorkServiceStub
from crucible_rpc import errors, pki, signing
from crucible_rpc.channel import connect
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ClientTls, ServerTls
from crucible_storage import keys
from crucible_storage.clock import SystemClock
from crucible_storage.permissions import PERMISSIONS
from crucible_storage.serving import add_services
from tests.storage import world as w

pytestmark = pytest.mark.slow

PROCESSES = ("storage", "gateway", "worker", "monitor", "executor")
REASONS = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    authority = pki.make_ca()
    (folder / "ca.crt").write_bytes(authority.cert_pem)
    for process in PROCESSES:
        made = pki.issue(authority, process)
        (folder / f"{process}.crt").write_bytes(made.cert_pem)
        (folder / f"{process}.key").write_bytes(made.key_pem)
    (folder / "tickets.key").write_bytes(w.TICKETS.private_pem)
    (folder / "records.pub").write_bytes(w.RECORDS.public_pem)
    (folder / "heads.key").write_bytes(w.HEADS.private_pem)
    for use, key in {"heads": w.OLD_HEADS, "records": w.OLD_RECORDS}.items():
        (folder / "public" / use).mkdir(parents=True)
        (folder / "public" / use / f"{key.key_id}.pub").write_bytes(key.public_pem)
    return folder


@pytest.fixture
async def stack():
    async with AsyncExitStack() as opened:
        yield opened


class Peers:
    """Stubs of storage, as each process sees it."""

    def __init__(self, folder, port, stack):
        self._folder, self._port, self._stack = folder, port, stack
        self._channels = {}

    def channel(self, process):
        if process not in self._channels:
            tls = ClientTls(self._folder / f"{process}.crt", self._folder / f"{process}.key", self._folder / "ca.crt")
            self._channels[process] = connect(f"127.0.0.1:{self._port}", tls, "storage")
            self._stack.push_async_callback(self._channels[process].close)
        return self._channels[process]

    @property
    def store(self):
        return EvaluationStoreServiceStub(self.channel("gateway"))

    @property
    def keys(self):
        return ApiKeyServiceStub(self.channel("gateway"))

    @property
    def audit(self):
        return AuditServiceStub(self.channel("gateway"))

    @property
    def status(self):
        return StatusServiceStub(self.channel("gateway"))

    @property
    def tenants(self):
        return TenantServiceStub(self.channel("gateway"))

    @property
    def queue(self):
        return QueueServiceStub(self.channel("gateway"))

    @property
    def work(self):
        return WorkServiceStub(self.channel("worker"))

    @property
    def log(self):
        return EventLogServiceStub(self.channel("monitor"))


@pytest.fixture
async def served(certificates, tmp_path, stack):
    world = await stack.enter_async_context(w.storage(tmp_path / "state", clock=SystemClock()))
    tls = ServerTls(certificates / "storage.crt", certificates / "storage.key", certificates / "ca.crt")
    server = Server(
        "storage",
        "127.0.0.1:0",
        tls,
        authentication=PeerPermissions(PERMISSIONS),
        registry=CollectorRegistry(),
        grace=timedelta(seconds=5),
    )
    add_services(server, world.service)
    await server.start()
    stack.push_async_callback(server.drain, timedelta(0))
    return server


@pytest.fixture
def peers(served, certificates, stack):
    return Peers(certificates, served.port, stack)


def create(tenant="t", **parts):
    return store_pb.CreateEvaluationRequest(tenant=tenant, creator="key-1", spec=w.spec(**parts))


def duration(request, seconds):
    request.wait.FromMilliseconds(int(seconds * 1000))
    return request


async def lease(peers, wait=0.0):
    request = work.LeaseWorkRequest(executor_id="ex-1", since=w.told(), max_runs=4)
    return (await peers.work.LeaseWork(duration(request, wait))).assignments


async def test_the_life_of_an_evaluation_over_the_wire(peers):
    registered = await peers.work.RegisterExecutor(work.RegisterExecutorRequest(executor=w.executor()))
    assert registered.lease_duration.seconds == 10
    assert registered.orphan_grace.seconds == 15
    leasing = asyncio.create_task(lease(peers, wait=20))
    created = (await peers.store.CreateEvaluation(create(labels={"a": "b"}))).evaluation
    [assignment] = await asyncio.wait_for(leasing, 10)
    wait = duration(store_pb.WaitEvaluationRequest(tenant="t", name=created.name), 20)
    waiting = asyncio.ensure_future(peers.store.WaitEvaluation(wait, timeout=30))
    reports = [
        w.report(assignment, w.started(), w.output(b"hi")),
        w.report(assignment, w.finished(assignment, stdout=b"hi")),
    ]
    wish = work.LeaseMore(since=w.told(), max_runs=1, request_id="w1")
    answer = await peers.work.ReportRuns(work.ReportRunsRequest(executor_id="ex-1", reports=reports, lease=wish))
    assert not answer.rejected
    assert not answer.assignments
    done = (await asyncio.wait_for(waiting, 10)).evaluation
    assert done.state == pb.EVALUATION_STATE_SUCCEEDED
    read = store_pb.ReadOutputRequest(tenant="t", name=created.name, stream=w.STDOUT)
    assert [(part.offset, part.data) async for part in peers.store.ReadOutput(read)] == [(0, b"hi")]
    listed = await peers.store.ListEvaluations(store_pb.ListEvaluationsRequest(tenant="t", page_size=10))
    assert [view.name for view in listed.evaluations] == [created.name]
    events = log_pb.ReadEventsRequest(tenant="t", evaluation=created.name)
    kinds = [event.WhichOneof("kind") async for batch in peers.log.ReadEvents(events) for event in batch.events]
    assert kinds == ["state_changed", "state_changed", "state_changed", "output", "state_changed"]
    queue = await peers.status.GetQueue(status_pb.GetQueueRequest(tenant="t"))
    assert (queue.queued, queue.running, queue.finished) == (0, 0, 1)
    executors = await peers.status.ListExecutors(status_pb.ListExecutorsRequest())
    assert [(one.executor.id, one.live) for one in executors.executors] == [("ex-1", True)]
    assert executors.max_attempts == 3


async def test_a_stop_is_pushed_to_its_worker(peers):
    await peers.work.RegisterExecutor(work.RegisterExecutorRequest(executor=w.executor()))
    created = (await peers.store.CreateEvaluation(create())).evaluation
    [assignment] = await lease(peers)
    stops = peers.work.WatchStops(work.WatchStopsRequest(executor_id="ex-1"))
    coming = asyncio.create_task(stops.read())
    await stops.wait_for_connection()
    cancel = store_pb.CancelEvaluationRequest(tenant="t", name=created.name, by="key-1", reason="enough")
    assert (await peers.store.CancelEvaluation(cancel)).evaluation.state == pb.EVALUATION_STATE_STARTING
    told = await asyncio.wait_for(coming, 5)
    assert [(stop.run_id, stop.epoch) for stop in told.stops] == [(assignment.run_id, assignment.epoch)]
    stops.cancel()


async def test_quotas_pauses_and_dead_letters_over_the_wire(peers):
    quota = Quota(evaluations_per_day=1, weight=2)
    made = await peers.tenants.CreateTenant(tenant_pb.CreateTenantRequest(tenant="t", quota=quota))
    assert (made.tenant.name, made.tenant.quota.weight, made.tenant.quota.max_priority) == ("t", 2, 100)
    created = (await peers.store.CreateEvaluation(create())).evaluation
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        await peers.store.CreateEvaluation(create())
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert caught.value.metadata == {"quota": "evaluations_per_day", "limit": "1", "use": "1"}
    assert timedelta(0) < caught.value.retry_after <= timedelta(days=1)
    raised = Quota(evaluations_per_day=9, max_priority=5)
    await peers.tenants.SetQuota(tenant_pb.SetQuotaRequest(tenant="t", quota=raised))
    with pytest.raises(errors.InvalidArgumentError) as above:
        await peers.store.CreateEvaluation(create(priority=6))
    assert [violation.field for violation in above.value.violations] == ["spec.priority"]
    await peers.work.RegisterExecutor(work.RegisterExecutorRequest(executor=w.executor()))
    await peers.queue.PauseQueue(queue_pb.PauseQueueRequest(by="key-1", reason="x"))
    assert not await lease(peers)
    status = await peers.queue.GetQueueStatus(queue_pb.GetQueueStatusRequest())
    assert (status.queued, status.max_queued, status.running) == (1, 200_000, 0)
    assert [(pause.tenant, pause.by, pause.reason) for pause in status.pauses] == [("", "key-1", "x")]
    assert (await peers.queue.ResumeQueue(queue_pb.ResumeQueueRequest())).ended.reason == "x"
    assert not (await peers.queue.ResumeQueue(queue_pb.ResumeQueueRequest())).HasField("ended")
    [assignment] = await lease(peers)
    refused = work.Refused(reason="no such image", permanent=True)
    reports = work.ReportRunsRequest(executor_id="ex-1", reports=[w.report(assignment, refused=refused)])
    assert not (await peers.work.ReportRuns(reports)).rejected
    page = await peers.queue.ListDeadLetters(queue_pb.ListDeadLettersRequest(page_size=5))
    assert [letter.evaluation for letter in page.dead_letters] == [created.name]
    retry = queue_pb.RetryDeadLetterRequest(name=created.name, by="key-1")
    first, second = await peers.queue.RetryDeadLetter(retry), await peers.queue.RetryDeadLetter(retry)
    assert first.evaluation == second.evaluation != created.name
    assert (first.repeated_call, second.repeated_call) == (False, True)
    [tenant] = (await peers.tenants.ListTenants(tenant_pb.ListTenantsRequest())).tenants
    assert (tenant.use.queued, tenant.use.evaluations_today) == (1, 2)


@pytest.mark.parametrize(
    "quota",
    [
        Quota(weight=0),
        Quota(weight=1001),
        Quota(max_priority=101),
        Quota(max_queued=-1),
        Quota(max_stored_bytes=1 << 60),
    ],
)
async def test_quotas_out_of_bounds_are_refused(peers, quota):
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await peers.tenants.CreateTenant(tenant_pb.CreateTenantRequest(tenant="t", quota=quota))
    assert caught.value.violations[0].field.startswith("quota.")
    assert not (await peers.tenants.ListTenants(tenant_pb.ListTenantsRequest())).tenants


async def test_only_the_named_process_may_call_an_rpc(peers):
    allowed = {"gateway": 0, "worker": 0, "monitor": 0, "storage": 0}
    for method, processes in PERMISSIONS.items():
        for process in PROCESSES:
            call = peers.channel(process).unary_unary(method)
            try:
                await call(b"\xff\xff", timeout=5)  # never a valid message: nothing is done by a permitted call either
            except errors.PermissionDeniedError:
                assert process not in processes
            except errors.CallError:
                assert process in processes
                allowed[process] += 1
    assert allowed == {"gateway": 36, "worker": 8, "monitor": 2, "storage": 2}


@pytest.mark.parametrize(
    ("rpc", "request_", "error", "reason"),
    [
        (
            "GetEvaluation",
            store_pb.GetEvaluationRequest(tenant="t", name="x"),
            errors.InvalidArgumentError,
            "INVALID_FIELD",
        ),
        (
            "GetEvaluation",
            store_pb.GetEvaluationRequest(tenant="t", name="evaluations/" + "0" * 8 + "-0000-0000-0000-" + "0" * 12),
            errors.NotFoundError,
            "EVALUATION_NOT_FOUND",
        ),
        ("ListEvaluations", store_pb.ListEvaluationsRequest(tenant="t"), errors.InvalidArgumentError, "INVALID_FIELD"),
        (
            "ListEvaluations",
            store_pb.ListEvaluationsRequest(tenant="t", page_size=1, page_token="x"),
            errors.InvalidArgumentError,
            "INVALID_PAGE_TOKEN",
        ),
        (
            "ListEvaluations",
            store_pb.ListEvaluationsRequest(tenant="t", page_size=1, states=[99]),
            errors.InvalidArgumentError,
            "INVALID_FIELD",
        ),
        ("CreateEvaluation", create(tenant="*"), errors.InvalidArgumentError, "INVALID_FIELD"),
        ("CreateEvaluation", create(tenant="a\x1fb"), errors.InvalidArgumentError, "INVALID_FIELD"),
        ("CreateEvaluation", create(engine=""), errors.InvalidArgumentError, "INVALID_FIELD"),
        ("CreateEvaluation", create(priority=101), errors.InvalidArgumentError, "INVALID_FIELD"),
        ("CreateEvaluation", create(output_bytes=0), errors.InvalidArgumentError, "INVALID_FIELD"),
    ],
)
async def test_bad_requests_are_refused_before_anything_is_stored(peers, rpc, request_, error, reason):
    with pytest.raises(error) as caught:
        await getattr(peers.store, rpc)(request_)
    assert caught.value.reason == reason
    assert reason in REASONS
    tail = peers.log.TailEvents(log_pb.TailEventsRequest(after_position=-1))
    assert (await tail.read()).last_position == 0
    tail.cancel()


@pytest.mark.parametrize("size", [0, -1, 1001, 2**31 - 1, -(2**31)])
async def test_absurd_page_sizes_are_refused_by_every_list(peers, size):
    calls = [
        peers.store.ListEvaluations(store_pb.ListEvaluationsRequest(tenant="t", page_size=size)),
        BatchStoreServiceStub(peers.channel("gateway")).ListBatches(
            batch_pb.ListBatchesRequest(tenant="t", page_size=size)
        ),
        peers.queue.ListDeadLetters(queue_pb.ListDeadLettersRequest(page_size=size)),
        peers.audit.ListAuditRecords(audit_pb.ListAuditRecordsRequest(page_size=size)),
    ]
    for call in calls:
        with pytest.raises(errors.InvalidArgumentError) as caught:
            await call
        assert [one.field for one in caught.value.violations] == ["page_size"]


async def test_an_unregistered_executor_and_bad_bounds_are_refused(peers):
    with pytest.raises(errors.FailedPreconditionError) as caught:
        await lease(peers)
    assert caught.value.reason == "NOT_REGISTERED"
    with pytest.raises(errors.InvalidArgumentError):
        await peers.work.LeaseWork(work.LeaseWorkRequest(executor_id="ex-1", since=w.told()))
    for since in (None, ex.ExecutorTime(boot_id="boot-1", seal=bytes(1000))):
        with pytest.raises(errors.InvalidArgumentError, match="since"):
            await peers.work.LeaseWork(work.LeaseWorkRequest(executor_id="ex-1", max_runs=1, since=since))
    with pytest.raises(errors.InvalidArgumentError):
        await peers.work.RenewLeases(work.RenewLeasesRequest(executor_id="e", leases=[work.LeaseRef()] * 1001))
    with pytest.raises(errors.InvalidArgumentError):
        await peers.work.RegisterExecutor(work.RegisterExecutorRequest())


async def test_api_keys_over_the_wire(peers):
    digest = hashlib.sha256(b"k").digest()
    made = await peers.keys.CreateApiKey(key_pb.CreateApiKeyRequest(tenant="t", admin=True, key_sha256=digest))
    found = await peers.keys.AuthenticateApiKey(key_pb.AuthenticateApiKeyRequest(key_sha256=digest))
    assert found.api_key == made.api_key
    listed = await peers.keys.ListApiKeys(key_pb.ListApiKeysRequest())
    assert list(listed.api_keys) == [made.api_key]
    revoked = await peers.keys.RevokeApiKey(key_pb.RevokeApiKeyRequest(id=made.api_key.id))
    assert revoked.api_key.HasField("revoke_time")
    with pytest.raises(errors.UnauthenticatedError) as caught:
        await peers.keys.AuthenticateApiKey(key_pb.AuthenticateApiKeyRequest(key_sha256=digest))
    assert caught.value.reason == "INVALID_API_KEY"
    with pytest.raises(errors.InvalidArgumentError):
        await peers.keys.AuthenticateApiKey(key_pb.AuthenticateApiKeyRequest(key_sha256=b"short"))


async def test_the_audit_log_and_a_receipt_over_the_wire(peers):
    created = (await peers.store.CreateEvaluation(create())).evaluation
    receipt = audit_pb.GetReceiptRequest(tenant="t", name=created.name)
    with pytest.raises(errors.FailedPreconditionError) as caught:
        await peers.audit.GetReceipt(receipt)
    assert caught.value.reason == "EVALUATION_NOT_FINISHED"
    await peers.store.CancelEvaluation(store_pb.CancelEvaluationRequest(tenant="t", name=created.name, by="key-1"))
    assert (await peers.audit.GetReceipt(receipt)).receipt.position == 3
    page = await peers.audit.ListAuditRecords(audit_pb.ListAuditRecordsRequest(page_size=2))
    assert [one.position for one in page.records] == [3, 2]
    more = audit_pb.ListAuditRecordsRequest(page_size=2, page_token=page.next_page_token)
    assert [one.position for one in (await peers.audit.ListAuditRecords(more)).records] == [1]
    other = audit_pb.ListAuditRecordsRequest(page_size=2, page_token=page.next_page_token, subject=created.name)
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await peers.audit.ListAuditRecords(other)
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
    answers = [one async for one in peers.audit.VerifyAudit(audit_pb.VerifyAuditRequest())]
    assert (answers[-1].summary.records, answers[-1].summary.findings) == (3, 0)
    since = audit_pb.VerifyAuditRequest(since=answers[-1].summary.head)
    since.since.signature = bytes(64)
    with pytest.raises(errors.InvalidArgumentError):
        [one async for one in peers.audit.VerifyAudit(since)]


def test_public_keys_that_were_replaced_stay_known(certificates):
    records = [certificates / "records.pub"]
    made = keys.head_keys(certificates / "heads.key", certificates / "public", records)
    known = {(one.key_id, one.use): one.current for one in made.public}
    assert known == {
        (w.HEADS.key_id, audit_v1.KEY_USE_HEADS): True,
        (w.OLD_HEADS.key_id, audit_v1.KEY_USE_HEADS): False,
        (w.RECORDS.key_id, audit_v1.KEY_USE_RECORDS): True,
        (w.OLD_RECORDS.key_id, audit_v1.KEY_USE_RECORDS): False,
    }
    assert made.public[0].key_id == made.signer.key_id == w.HEADS.key_id
    old = signing.Signer(w.OLD_HEADS.private_pem).sign("c", b"x")
    made.verifier.verify("c", b"x", old.key_id, old.signature)
    record = signing.Signer(w.RECORDS.private_pem).sign("c", b"x")
    with pytest.raises(signing.BadSignatureError):  # an executor's key signs no heads
        made.verifier.verify("c", b"x", record.key_id, record.signature)


async def test_streams_and_long_polls_end_when_the_server_drains(peers, served):
    await peers.work.RegisterExecutor(work.RegisterExecutorRequest(executor=w.executor()))
    polling = asyncio.create_task(lease(peers, wait=30))
    tail = peers.log.TailEvents(log_pb.TailEventsRequest())
    await tail.read()
    ending = asyncio.create_task(tail.read())
    stops = peers.work.WatchStops(work.WatchStopsRequest(executor_id="ex-1"))
    stopping = asyncio.create_task(stops.read())
    await stops.wait_for_connection()
    begun = asyncio.get_running_loop().time()
    await served.drain()
    assert asyncio.get_running_loop().time() - begun < 4  # not the whole grace of 5 s
    assert not await polling
    for stream in (ending, stopping):
        with pytest.raises(errors.UnavailableError):
            await stream


class Process:
    """Storage as its supervisor starts it."""

    def __init__(self, certificates, state, **settings):
        self.environment = {
            "CRUCIBLE_STORAGE_STATE": str(state),
            "CRUCIBLE_STORAGE_TLS_CERT": str(certificates / "storage.crt"),
            "CRUCIBLE_STORAGE_TLS_KEY": str(certificates / "storage.key"),
            "CRUCIBLE_STORAGE_TLS_CA": str(certificates / "ca.crt"),
            "CRUCIBLE_STORAGE_TICKETS_KEY": str(certificates / "tickets.key"),
            "CRUCIBLE_STORAGE_HEADS_KEY": str(certificates / "heads.key"),
            "CRUCIBLE_STORAGE_PUBLIC_KEYS": str(certificates / "public"),
            "CRUCIBLE_STORAGE_RECORDS_PUB": str(certificates / "records.pub"),
            "CRUCIBLE_STORAGE_LISTEN": "127.0.0.1:0",
            "CRUCIBLE_STORAGE_ADMIN": "127.0.0.1:0",
            **w.DATABASES.environment(state),
            **settings,
        }

    async def __aenter__(self):
        self.child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "crucible_storage", env=self.environment, stderr=asyncio.subprocess.PIPE
        )
        return self

    async def __aexit__(self, *_):
        if self.child.returncode is None:
            self.child.kill()
            await self.child.wait()

    async def line_with(self, text):
        async with asyncio.timeout(20):
            while line := (await self.child.stderr.readline()).decode():
                if text in line:
                    return line
        raise AssertionError(f"the process ended without a line with {text!r}")


async def test_the_process_starts_serves_and_ends_on_sigterm(certificates, tmp_path):
    digest = hashlib.sha256(b"first").hexdigest()
    async with Process(certificates, tmp_path / "state", CRUCIBLE_STORAGE_BOOTSTRAP_KEY_SHA256=digest) as process:
        await process.line_with("the operator's admin key was stored")
        await process.line_with('"serving"')
        async with Process(certificates, tmp_path / "state") as second:
            _, text = await asyncio.wait_for(second.child.communicate(), 20)
            told = [line for line in text.decode().splitlines() if line.startswith("crucible-storage:")]
            assert len(told) == 1
            assert "another storage process uses the state folder" in told[0]
            assert second.child.returncode == 1
        process.child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.child.wait(), 20) == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"CRUCIBLE_STORAGE_STATE": "/proc/state"}, "the state folder /proc/state cannot be written"),
        ({"CRUCIBLE_STORAGE_TICKETS_KEY": "/nowhere"}, "cannot read the key /nowhere"),
        ({"CRUCIBLE_STORAGE_HEADS_KEY": "/nowhere"}, "cannot read the key /nowhere"),
        ({"CRUCIBLE_STORAGE_HEADS_KEY": "/etc/hostname"}, "/etc/hostname holds no unencrypted Ed25519 private key"),
        ({"CRUCIBLE_STORAGE_ORPHAN_GRACE": "1s"}, "orphan_grace must be longer than lease"),
        ({"CRUCIBLE_STORAGE_BOOTSTRAP_KEY_SHA256": "ab"}, "64 hex digits"),
        ({"CRUCIBLE_STORAGE_NONSENSE": "1"}, "CRUCIBLE_STORAGE_NONSENSE is not a known setting"),
    ],
)
async def test_what_keeps_it_from_starting_is_one_clear_line(certificates, tmp_path, settings, line):
    async with Process(certificates, tmp_path / "state", **settings) as process:
        _, text = await asyncio.wait_for(process.child.communicate(), 20)
    assert process.child.returncode in (1, 2)
    assert len(text.decode().strip().splitlines()) == 1
    assert line in text.decode()
