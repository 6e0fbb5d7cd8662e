"""A gateway's public contract in memory, behind a real TLS server: what the client's tests call.

What a program does is written in its entry file as a `Script` in JSON; a program of any other text is really run, by a
child process of this machine (only the tests' own programs come here).
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf import json_format

from crucible.audit.v1 import audit_pb2
from crucible.evaluation.v1 import behaviour_update_pb2, evaluation_pb2, event_pb2, platform_pb2, tenant_pb2
from crucible.gateway.v1 import admin_service_pb2 as admin
from crucible.gateway.v1 import admin_service_pb2_grpc as admin_grpc
from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible.gateway.v1 import evaluation_service_pb2_grpc as api_grpc
from crucible.gateway.v1 import platform_service_pb2 as platform
from crucible.gateway.v1 import platform_service_pb2_grpc as platform_grpc
from crucible_rpc import errors, status

SUCCEEDED, FAILED, CANCELLED = 4, 5, 6
KEY = "crucible_test-key"


def script(*, out=(), end=None, hang=False, **more) -> str:
    """A program for this server: `out` of (stream 1|2, bytes), `end` a Termination as JSON, `hang` until cancelled.

    `tried` = BehaviourUpdates as JSON.
    `meet` = n waits until n run at once; `lost_attempt` = why a first attempt was lost; `dropped` bytes were not kept.
    """
    chunks = [(stream, data.hex()) for stream, data in out]
    return json.dumps({"out": chunks, "end": end or {"exited": {"code": 0}}, "hang": hang, **more})


@dataclass
class Record:
    evaluation: evaluation_pb2.Evaluation
    events: list = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    outputs: dict = field(default_factory=lambda: {1: b"", 2: b""})
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task | None = None

    @property
    def terminal(self) -> bool:
        return self.evaluation.state in (SUCCEEDED, FAILED, CANCELLED)


class Gateway:
    """The state, and what tests set to make it misbehave.

    Attributes:
        faults: errors to answer with, by RPC, before it works again.
        watch_limit: events that one watch stream carries before it is broken off; None: all.
        break_watch: how a watch stream is broken off: "unavailable", "fell_behind" or "end".
        calls: how often each RPC was called.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.by_request: dict[str, str] = {}
        self.faults: dict[str, list[errors.CallError]] = defaultdict(list)
        self.watch_limit: int | None = None
        self.break_watch = "unavailable"
        self.confirm_cancel = asyncio.Event()
        self.confirm_cancel.set()
        self.calls: dict[str, int] = defaultdict(int)
        self.watched_after: list[int] = []
        self.keys: dict[str, admin.ApiKey] = {}
        self.serving = True
        self.running = 0
        self.most_running = 0
        self.crowd: dict[int, asyncio.Event] = defaultdict(asyncio.Event)  # set when so many have run at once
        self.arrived: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.checks: list = []
        self.attempts: list = []
        self.self_test = self.verification = None
        self.asked: list[tuple] = []
        self.receipt = audit_pb2.Receipt()
        self.usage_samples = api.ListUsageSamplesResponse()
        self.public_keys: tuple = ()
        self.audit_records: list = []
        self.audit_findings: list = []
        self.audit_summary = audit_pb2.AuditSummary()
        self.audit_since = self.audit_subject = None
        self.tenants: dict[str, tenant_pb2.Tenant] = {}
        self.pauses: dict[str, tenant_pb2.QueuePause] = {}
        self.still_running: list[int] = []  # what GetQueueStatus says of tenant `t`, one after the other
        self.dead: list[tenant_pb2.DeadLetter] = []

    async def enter(self, rpc: str, context) -> None:
        self.calls[rpc] += 1
        self.arrived[rpc].set()
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {KEY}":
            await refuse(context, errors.UnauthenticatedError("INVALID_API_KEY", "this API key is not known"))
        if self.faults[rpc]:
            await refuse(context, self.faults[rpc].pop(0))

    def create(self, request) -> Record:
        known = self.by_request.get(request.request_id)
        if request.request_id and known:
            return self.records[known]
        name = f"evaluations/{uuid.uuid4()}"
        record = Record(evaluation_pb2.Evaluation(name=name, tenant="t", creator="k", spec=request.spec))
        record.evaluation.labels.update(request.spec.labels)
        record.evaluation.create_time.GetCurrentTime()
        self.records[name] = record
        self.by_request[request.request_id] = name
        self._append(record, state=1)
        record.task = asyncio.create_task(self._run(record))
        return record

    async def _run(self, record: Record) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.crowd[self.running].set()
        try:
            await self._ended(record)
        finally:
            self.running -= 1

    async def _ended(self, record: Record) -> None:
        record.evaluation.attempt = 1
        await self._tell(record, state=2)
        record.evaluation.start_time.GetCurrentTime()
        await self._tell(record, state=3)
        program = record.evaluation.spec.program
        try:
            plan = json.loads(program.files[0].content)
        except ValueError:
            plan = await really_run(program)
        await self.crowd[plan.get("meet", 1)].wait()
        if plan.get("lost_attempt"):
            await self._output(record, 1, b"first ")
            failed = record.evaluation.failed_attempts.add(attempt=1, reason=plan["lost_attempt"])
            await self._tell(record, attempt_failed=failed)
            record.evaluation.attempt, record.outputs[1] = 2, b""
        for stream, data in plan["out"]:
            await self._output(record, stream, bytes.fromhex(data))
        for update in plan.get("tried", ()):
            told = json_format.ParseDict(update, behaviour_update_pb2.BehaviourUpdate())
            await self._tell(record, behaviour=told)
        end = json_format.ParseDict(plan["end"], evaluation_pb2.Termination())
        if plan.get("hang"):
            await record.cancelled.wait()
            await self.confirm_cancel.wait()
            end = evaluation_pb2.Termination(cancelled=evaluation_pb2.Cancelled(by="k", reason="asked", confirmed=True))
        await self._finish(record, end, plan)

    async def _finish(self, record: Record, end: evaluation_pb2.Termination, plan: dict) -> None:
        succeeded = end.WhichOneof("kind") == "exited" and end.exited.code == 0
        state = CANCELLED if end.HasField("cancelled") else SUCCEEDED if succeeded else FAILED
        evaluation = record.evaluation
        evaluation.end_time.GetCurrentTime()
        evaluation.termination.CopyFrom(end)
        for stream, summary in ((1, evaluation.stdout), (2, evaluation.stderr)):
            kept = record.outputs[stream]
            more = plan.get("dropped", 0) if stream == 1 else 0
            summary.bytes_total, summary.bytes_kept = len(kept) + more, len(kept)
            summary.truncated, summary.preview = more > 0, kept[:4096]
        evaluation.usage.wall_time.FromMilliseconds(12)
        evaluation.usage.peak_memory_bytes = 1 << 20
        await self._tell(record, state=state, termination=end)

    async def _output(self, record: Record, stream: int, data: bytes) -> None:
        chunk = event_pb2.OutputChunk(stream=stream, offset=len(record.outputs[stream]), data=data)
        record.outputs[stream] += data
        await self._tell(record, output=chunk)

    async def _tell(self, record: Record, **kind) -> None:
        async with record.changed:
            self._append(record, **kind)
            record.changed.notify_all()

    def _append(self, record: Record, *, state: int | None = None, termination=None, **kind) -> None:
        if state is not None:
            record.evaluation.state = state
            record.evaluation.version += 1
            kind["state_changed"] = event_pb2.StateChanged(
                state=state, version=record.evaluation.version, termination=termination
            )
        event = event_pb2.Event(
            position=10 * (len(record.events) + 1),  # a log of many evaluations: positions of one have gaps
            evaluation=record.evaluation.name,
            attempt=record.evaluation.attempt,
            **kind,
        )
        event.time.GetCurrentTime()
        record.events.append(event)

    async def find(self, name: str, context) -> Record:
        record = self.records.get(name)
        if record is None:
            await refuse(context, errors.NotFoundError("EVALUATION_NOT_FOUND", f"there is no evaluation {name}"))
        return record


async def refuse(context, error: errors.CallError) -> None:
    code, details, trailing = status.to_status(error)
    await context.abort(code, details, trailing)


async def really_run(program) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        for file in program.files:
            (Path(folder) / file.path).write_bytes(file.content)
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-I", program.entrypoint or program.files[0].path)
        child = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        try:
            out, err = await child.communicate(program.stdin)
        finally:
            if child.returncode is None:  # the test is over, and the program hangs
                os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
    code = child.returncode
    end = {"exited": {"code": code}} if code >= 0 else {"signalled": {"signal": -code}}
    return {"out": [(1, out.hex()), (2, err.hex())], "end": end}


class Evaluations(api_grpc.EvaluationServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def CreateEvaluation(self, request, context):
        await self._gateway.enter("CreateEvaluation", context)
        return api.CreateEvaluationResponse(evaluation=self._gateway.create(request).evaluation)

    async def RunEvaluation(self, request, context):
        await self._gateway.enter("RunEvaluation", context)
        record = self._gateway.create(request)
        async with record.changed:
            await record.changed.wait_for(lambda: record.terminal)
        return api.RunEvaluationResponse(evaluation=record.evaluation)

    async def GetEvaluation(self, request, context):
        await self._gateway.enter("GetEvaluation", context)
        record = await self._gateway.find(request.name, context)
        return api.GetEvaluationResponse(evaluation=record.evaluation)

    async def ListEvaluations(self, request, context):
        await self._gateway.enter("ListEvaluations", context)
        wanted = [
            record.evaluation
            for record in reversed(self._gateway.records.values())
            if (not request.states or record.evaluation.state in request.states)
            and all(record.evaluation.labels.get(key) == value for key, value in request.labels.items())
        ]
        first = int(request.page_token or 0)
        last = first + request.page_size
        token = str(last) if last < len(wanted) else ""
        return api.ListEvaluationsResponse(evaluations=wanted[first:last], next_page_token=token)

    async def CancelEvaluation(self, request, context):
        await self._gateway.enter("CancelEvaluation", context)
        record = await self._gateway.find(request.name, context)
        record.cancelled.set()
        return api.CancelEvaluationResponse(evaluation=record.evaluation)

    async def WatchEvaluation(self, request, context):
        gateway = self._gateway
        await gateway.enter("WatchEvaluation", context)
        record = await gateway.find(request.name, context)
        gateway.watched_after.append(request.after_position)
        sent, after = 0, request.after_position
        while True:
            fresh = [event for event in record.events if event.position > after]
            for event in fresh:
                if gateway.watch_limit is not None and sent >= gateway.watch_limit:
                    if gateway.break_watch == "unavailable":
                        await refuse(context, errors.UnavailableError("SHUTTING_DOWN", "the gateway is stopping"))
                    if gateway.break_watch == "fell_behind":
                        yield api.WatchEvaluationResponse(fell_behind=api.FellBehind(resume_after_position=after))
                    return
                yield api.WatchEvaluationResponse(event=event)
                sent, after = sent + 1, event.position
            if record.terminal and after >= record.events[-1].position:
                return
            async with record.changed:
                await record.changed.wait_for(lambda: record.events[-1].position > after)  # noqa: B023

    async def GetReceipt(self, request, context):
        await self._gateway.enter("GetReceipt", context)
        return api.GetReceiptResponse(receipt=self._gateway.receipt)

    async def ListUsageSamples(self, request, context):
        await self._gateway.enter("ListUsageSamples", context)
        await self._gateway.find(request.name, context)
        self._gateway.asked.append((request.name, request.attempt))
        return self._gateway.usage_samples

    async def ReadOutput(self, request, context):
        await self._gateway.enter("ReadOutput", context)
        record = await self._gateway.find(request.name, context)
        data = record.outputs[request.stream]
        for offset in range(request.offset, len(data), 65536):
            yield api.ReadOutputResponse(offset=offset, data=data[offset : offset + 65536])


class Platform(platform_grpc.PlatformServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def GetCapabilities(self, request, context):
        await self._gateway.enter("GetCapabilities", context)
        engine = platform_pb2.Engine(name="gvisor", version="1", isolation=3, enforces=[1, 3], available=True)
        answer = platform.GetCapabilitiesResponse(engines=[engine], default_engine="gvisor", max_attempts=3)
        answer.default_limits.wall_time.FromSeconds(30)
        answer.default_limits.memory_bytes = 512 << 20
        return answer

    async def GetStatus(self, request, context):
        await self._gateway.enter("GetStatus", context)
        processes = [platform.ProcessStatus(process="gateway", serving=True)]
        detail = "" if self._gateway.serving else "no lease for 12 s\x1b[31m"
        processes.append(
            platform.ProcessStatus(process="executor/e1", serving=self._gateway.serving, detail=detail, slots=2)
        )
        queue = platform.QueueStatus(queued=1, running=2, finished=3)
        return platform.GetStatusResponse(processes=processes, queue=queue)

    async def ListRuntimes(self, request, context):
        await self._gateway.enter("ListRuntimes", context)
        node = platform_pb2.Runtime(name="node", unavailable_reason="no image")
        python = platform_pb2.Runtime(name="python", command=["python3"])
        return platform.ListRuntimesResponse(runtimes=[node, python])

    async def ListPublicKeys(self, request, context):
        await self._gateway.enter("ListPublicKeys", context)
        uses = (audit_pb2.KEY_USE_HEADS, audit_pb2.KEY_USE_RECORDS)
        keys = [
            audit_pb2.PublicKey(key_id=key.key_id, use=use, pem=key.public_pem.decode(), current=True)
            for key, use in zip(self._gateway.public_keys, uses, strict=True)
        ]
        return platform.ListPublicKeysResponse(public_keys=keys)

    async def RunSelfTest(self, request, context):
        await self._gateway.enter("RunSelfTest", context)
        self._gateway.asked.append(("self_test", request.engine, []))
        for check in self._gateway.checks:
            yield platform.RunSelfTestResponse(check=check)
        if self._gateway.self_test is not None:
            yield platform.RunSelfTestResponse(summary=self._gateway.self_test)

    async def VerifyIsolation(self, request, context):
        await self._gateway.enter("VerifyIsolation", context)
        self._gateway.asked.append(("verify", request.engine, list(request.attempts)))
        for attempt in self._gateway.attempts:
            yield platform.VerifyIsolationResponse(attempt=attempt)
        if self._gateway.verification is not None:
            yield platform.VerifyIsolationResponse(summary=self._gateway.verification)


class Admin(admin_grpc.AdminServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def CreateApiKey(self, request, context):
        await self._gateway.enter("CreateApiKey", context)
        made = admin.ApiKey(id=f"key{len(self._gateway.keys)}", tenant=request.tenant, role=request.role)
        made.create_time.GetCurrentTime()
        self._gateway.keys[made.id] = made
        return admin.CreateApiKeyResponse(api_key=made, secret=f"crucible_secret-of-{made.id}")

    async def ListApiKeys(self, request, context):
        await self._gateway.enter("ListApiKeys", context)
        return admin.ListApiKeysResponse(api_keys=self._gateway.keys.values())

    async def ListAuditRecords(self, request, context):
        await self._gateway.enter("ListAuditRecords", context)
        self._gateway.audit_subject = request.subject
        records, first = self._gateway.audit_records[::-1], int(request.page_token or 0)
        last = first + request.page_size
        token = str(last) if last < len(records) else ""
        return admin.ListAuditRecordsResponse(records=records[first:last], next_page_token=token)

    async def VerifyAudit(self, request, context):
        await self._gateway.enter("VerifyAudit", context)
        self._gateway.audit_since = request.since
        yield admin.VerifyAuditResponse(records=1)
        for finding in self._gateway.audit_findings:
            yield admin.VerifyAuditResponse(finding=finding)
        yield admin.VerifyAuditResponse(summary=self._gateway.audit_summary)

    async def RevokeApiKey(self, request, context):
        await self._gateway.enter("RevokeApiKey", context)
        self._gateway.keys[request.id].revoke_time.GetCurrentTime()
        return admin.RevokeApiKeyResponse(api_key=self._gateway.keys[request.id])

    async def CreateTenant(self, request, context):
        await self._gateway.enter("CreateTenant", context)
        made = tenant_pb2.Tenant(name=request.tenant, quota=tenant_pb2.Quota(weight=1, max_priority=100))
        made.quota.MergeFrom(request.quota)
        made.use.stored_bytes = 1536
        self._gateway.tenants[made.name] = made
        return admin.CreateTenantResponse(tenant=made)

    async def ListTenants(self, request, context):
        await self._gateway.enter("ListTenants", context)
        return admin.ListTenantsResponse(tenants=self._gateway.tenants.values())

    async def SetQuota(self, request, context):
        await self._gateway.enter("SetQuota", context)
        tenant = self._gateway.tenants[request.tenant]
        tenant.quota.MergeFrom(request.quota)
        return admin.SetQuotaResponse(tenant=tenant)

    async def PauseQueue(self, request, context):
        await self._gateway.enter("PauseQueue", context)
        pause = tenant_pb2.QueuePause(tenant=request.tenant, by="key9", reason=request.reason)
        pause.time.GetCurrentTime()
        self._gateway.pauses[request.tenant] = pause
        return admin.PauseQueueResponse(pause=pause)

    async def ResumeQueue(self, request, context):
        await self._gateway.enter("ResumeQueue", context)
        return admin.ResumeQueueResponse(ended=self._gateway.pauses.pop(request.tenant, None))

    async def GetQueueStatus(self, request, context):
        await self._gateway.enter("GetQueueStatus", context)
        running = self._gateway.still_running.pop(0) if self._gateway.still_running else 0
        one = tenant_pb2.TenantQueue(tenant="t", queued=4, running=running, weight=2, max_running=3)
        one.oldest_create_time.GetCurrentTime()
        pauses = self._gateway.pauses.values()
        return admin.GetQueueStatusResponse(
            queued=4, max_queued=9, running=running, tenants=[one], pauses=pauses, dead_letters=len(self._gateway.dead)
        )

    async def ListDeadLetters(self, request, context):
        await self._gateway.enter("ListDeadLetters", context)
        dead = [one for one in self._gateway.dead if request.retried or not one.retried_as]
        start = int(request.page_token or 0)
        token = str(start + 1) if start + 1 < len(dead) else ""
        return admin.ListDeadLettersResponse(dead_letters=dead[start : start + 1], next_page_token=token)

    async def RetryDeadLetter(self, request, context):
        await self._gateway.enter("RetryDeadLetter", context)
        [letter] = [one for one in self._gateway.dead if one.evaluation == request.name]
        repeated = bool(letter.retried_as)
        letter.retried_as = letter.retried_as or f"evaluations/new-{letter.evaluation[-1]}"
        return admin.RetryDeadLetterResponse(evaluation=letter.retried_as, repeated_call=repeated)

    async def DeleteEvaluation(self, request, context):
        await self._gateway.enter("DeleteEvaluation", context)
        record = await self._gateway.find(request.name, context)
        answer = admin.DeleteEvaluationResponse(tenant=record.evaluation.tenant)
        answer.deleted.state = record.evaluation.state
        answer.deleted.reason = request.reason
        answer.deleted.stdout_sha256 = b"\x01\x02"
        answer.delete_time.FromSeconds(1_800_000_000)
        return answer


@asynccontextmanager
async def serve(gateway: Gateway, credentials: Callable[[], grpc.ServerCredentials], port: int = 0):
    """A running server; yields its port."""
    server = grpc.aio.server()
    api_grpc.add_EvaluationServiceServicer_to_server(Evaluations(gateway), server)
    platform_grpc.add_PlatformServiceServicer_to_server(Platform(gateway), server)
    admin_grpc.add_AdminServiceServicer_to_server(Admin(gateway), server)
    bound = server.add_secure_port(f"127.0.0.1:{port}", credentials())
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(0)
        tasks = [record.task for record in gateway.records.values() if record.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
