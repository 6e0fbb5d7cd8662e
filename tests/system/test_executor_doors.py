"""Who gets into the executor: its own worker with storage's ticket, and nobody else with anything else."""

import asyncio
import hashlib
import time
import uuid
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import pytest

import crucible_rpc  # noqa: F401  # before grpc
from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import signed_pb2
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1 import executor_service_pb2_grpc as ex_grpc
from crucible.executor.v1.inspection_service_pb2 import RunInspectionRequest
from crucible.executor.v1.inspection_service_pb2_grpc import InspectionServiceStub
from crucible.selftest.v1.inspection_pb2 import INSPECTION_KIND_SELF_TEST, InspectionTicket
from crucible.storage.v1 import status_service_pb2 as st
from crucible.storage.v1 import status_service_pb2_grpc as st_grpc
from crucible_rpc import pki, signing
from crucible_rpc.channel import connect
from crucible_rpc.errors import AlreadyExistsError, CallError, PermissionDeniedError, UnavailableError
from crucible_rpc.tls import ClientTls
from tests.system.local import python

CONTEXT = "crucible.ticket.v1"
GRACE_SECONDS = 15.5  # more than the executor's `orphan_grace`


def tls_of(stack, process: str) -> ClientTls:
    own = stack.layout.pki / process
    return ClientTls(own / "tls.crt", own / "tls.key", own / "ca.crt")


@asynccontextmanager
async def executor(stack, process: str = "worker"):
    async with connect(stack.layout.address("executor"), tls_of(stack, process), "executor") as channel:
        yield ex_grpc.ExecutorServiceStub(channel)


@pytest.fixture(scope="module", autouse=True)
def oldest(stack):
    """What the executor's clock said before all of these tests, so that one need not wait for it, and when that was."""

    async def ask() -> ex.ExecutorTime:
        async with executor(stack) as stub:
            return await told(stub)

    return asyncio.run(ask()), time.monotonic()


def limits() -> ev.Limits:
    made = ev.Limits(
        cpus=1, memory_bytes=256 << 20, processes=16, output_bytes=65536, open_files=64, disk_bytes=1 << 20
    )
    made.wall_time.FromTimedelta(timedelta(seconds=10))
    return made


def run_spec(code: bytes = b"print('hello')") -> bytes:
    program = ev.Program(runtime="python", files=[ev.File(path="main.py", content=code)], entrypoint="main.py")
    return ex.RunSpec(program=program, engine="gvisor").SerializeToString(deterministic=True)


async def told(stub) -> ex.ExecutorTime:
    """What the executor's clock says."""
    return (await stub.GetExecutor(ex.GetExecutorRequest())).time


def signed(stack, ticket, context: str, key: bytes | None = None) -> signed_pb2.SignedBytes:
    """Signed with storage's real key unless another is given."""
    payload = ticket.SerializeToString()
    signer = signing.Signer(key or (stack.layout.pki / "storage" / "tickets.key").read_bytes())
    signature = signer.sign(context, payload)
    return signed_pb2.SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature)


async def request(stub, stack, *, key: bytes | None = None, since=None, **changes) -> ex.ExecuteRequest:
    """A good request, signed with storage's real key unless another is given; `changes` are made to its ticket."""
    answer = await stub.GetExecutor(ex.GetExecutorRequest())
    about = answer.executor
    evaluation = str(uuid.uuid4())
    spec = run_spec()
    ticket = ex.Ticket(
        run_id=f"{evaluation}.1",
        evaluation=f"evaluations/{evaluation}",
        attempt=1,
        run_spec_sha256=hashlib.sha256(spec).digest(),
        limits=limits(),
        lease_epoch=1,
        executor_id=about.id,
        boot_id=about.boot_id,
        since=since or answer.time,
    )
    for name, value in changes.items():
        setattr(ticket, name, value)
    made = ex.ExecuteRequest(ticket=signed(stack, ticket, CONTEXT, key), run_spec=spec)
    made.permit.FromTimedelta(timedelta(seconds=15))
    return made


async def execute(stub, made: ex.ExecuteRequest) -> list[ex.RunEvent]:
    return [event async for answer in stub.Execute(made) for event in answer.events]


async def test_a_good_ticket_starts_a_run_and_only_once(stack):
    async with executor(stack) as stub:
        good = await request(stub, stack)
        events = await execute(stub, good)
        assert b"".join(event.output.data for event in events) == b"hello\n"
        record = ex.FinalRecord.FromString(events[-1].finished.payload)
        assert record.termination.exited.code == 0
        # Replayed while the executor remembers the run, and after storage has acknowledged it.
        with pytest.raises(AlreadyExistsError):
            await execute(stub, good)
        await stub.Acknowledge(ex.AcknowledgeRequest(run_ids=[record.run_id]))
        with pytest.raises(CallError) as refused:
            await execute(stub, good)
        assert refused.value.reason in ("RUN_EXISTS", "INVALID_TICKET")


@pytest.mark.parametrize("process", ["gateway", "storage", "monitor", "executor"])
async def test_another_process_certificate_opens_nothing(stack, process):
    async with executor(stack) as own, executor(stack, process) as other:
        good = await request(own, stack)
        with pytest.raises(PermissionDeniedError):
            await execute(other, good)
        for call, message in (
            (other.GetExecutor, ex.GetExecutorRequest()),
            (other.ListRuns, ex.ListRunsRequest()),
            (other.Kill, ex.KillRequest(run_id=f"{uuid.uuid4()}.1")),
        ):
            with pytest.raises(PermissionDeniedError):
                await call(message)


async def test_no_certificate_opens_nothing(stack):
    credentials = grpc.ssl_channel_credentials((stack.layout.pki / "ca.crt").read_bytes())
    options = [("grpc.ssl_target_name_override", "executor")]
    async with grpc.aio.secure_channel(stack.layout.address("executor"), credentials, options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ex_grpc.ExecutorServiceStub(channel).GetExecutor(ex.GetExecutorRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    async with grpc.aio.insecure_channel(stack.layout.address("executor")) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await ex_grpc.ExecutorServiceStub(channel).GetExecutor(ex.GetExecutorRequest(), timeout=10)


async def test_another_authoritys_worker_opens_nothing(stack, tmp_path):
    made = pki.issue(pki.make_ca(), "worker")
    (tmp_path / "crt").write_bytes(made.cert_pem)
    (tmp_path / "key").write_bytes(made.key_pem)
    forged = ClientTls(tmp_path / "crt", tmp_path / "key", stack.layout.pki / "ca.crt")
    async with connect(stack.layout.address("executor"), forged, "executor") as channel:
        with pytest.raises(UnavailableError):
            await ex_grpc.ExecutorServiceStub(channel).GetExecutor(ex.GetExecutorRequest())


async def test_without_a_good_ticket_the_worker_itself_starts_nothing(stack):
    async with executor(stack) as stub:
        good = await request(stub, stack)
        none = ex.ExecuteRequest(run_spec=good.run_spec, permit=good.permit)
        other_spec = ex.ExecuteRequest(ticket=good.ticket, run_spec=run_spec(b"print('other')"), permit=good.permit)
        tampered = ex.ExecuteRequest.FromString(good.SerializeToString())
        ticket = ex.Ticket.FromString(tampered.ticket.payload)
        ticket.limits.memory_bytes *= 2
        tampered.ticket.payload = ticket.SerializeToString()
        made_up = await told(stub)
        made_up.uptime.seconds -= 1
        bad = {
            "none": none,
            "other spec": other_spec,
            "tampered": tampered,
            "forged": await request(stub, stack, key=signing.generate().private_pem),
            "resting on a time that nobody told": await request(stub, stack, since=made_up),
            "for another executor": await request(stub, stack, executor_id="x-other"),
            "for another start": await request(stub, stack, boot_id="0" * 32),
        }
        for what, one in bad.items():
            with pytest.raises(PermissionDeniedError) as refused:
                await execute(stub, one)
            assert refused.value.reason == "INVALID_TICKET", what
        assert not [run for run in (await stub.ListRuns(ex.ListRunsRequest())).runs if run.run_id in str(bad)]


async def test_expired_tickets_start_nothing(stack, oldest):
    """Stolen when they were made, with the worker's own certificate beside them."""
    since, at = oldest
    await asyncio.sleep(max(0.0, at + GRACE_SECONDS - time.monotonic()))
    async with connect(stack.layout.address("executor"), tls_of(stack, "worker"), "executor") as channel:
        stub = ex_grpc.ExecutorServiceStub(channel)
        about = (await stub.GetExecutor(ex.GetExecutorRequest())).executor
        with pytest.raises(PermissionDeniedError, match="expired"):
            await execute(stub, await request(stub, stack, since=since))
        ticket = InspectionTicket(
            inspection_id=str(uuid.uuid4()), kind=INSPECTION_KIND_SELF_TEST, engine="gvisor",
            executor_id=about.id, boot_id=about.boot_id, since=since,
        )  # fmt: skip
        call = RunInspectionRequest(ticket=signed(stack, ticket, "crucible.inspection.ticket.v1"))
        with pytest.raises(PermissionDeniedError, match="expired"):
            await anext(aiter(InspectionServiceStub(channel).RunInspection(call)))


async def test_a_server_with_another_process_certificate_is_refused_by_its_client(stack):
    """The real executor stands where the caller expects storage, and the other way round."""
    for address, peer in (("executor", "storage"), ("storage", "executor"), ("monitor", "storage")):
        async with connect(stack.layout.address(address), tls_of(stack, "worker"), peer) as channel:
            with pytest.raises(UnavailableError):
                await st_grpc.StatusServiceStub(channel).ListExecutors(st.ListExecutorsRequest())


async def test_the_executor_still_works(client):
    done = await client.run(python("print(1)"))
    assert done.attempt == 1
