"""Nothing runs without storage's good leave."""

import pytest

from crucible.evaluation.v1.evaluation_pb2 import File, Program
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1.executor_service_pb2 import KILL_CAUSE_PERMIT_EXPIRED, Ticket
from crucible.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from crucible_executor.executor_clock import ExecutorClock
from crucible_rpc import signing
from crucible_rpc.channel import connect
from crucible_rpc.errors import (
    AlreadyExistsError,
    CallError,
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnavailableError,
)
from tests.executor.support import collect, limits, ticket

pytestmark = pytest.mark.slow


async def refused(executor, request, error=PermissionDeniedError, reason="INVALID_TICKET"):
    with pytest.raises(error) as caught:
        await collect(executor.stub.Execute(request), executor.keys)
    assert caught.value.reason == reason
    assert executor.engine.created == 0
    assert executor.service.runs.states() == {}
    return caught.value


async def refused_again(executor, request):
    """As `refused`, after others ran."""
    with pytest.raises(PermissionDeniedError) as caught:
        await collect(executor.stub.Execute(request), executor.keys)
    assert caught.value.reason == "INVALID_TICKET"


async def test_a_good_ticket_runs(executor):
    ended = await executor.execute({"out": "hello"})
    assert ended.stdout == b"hello"
    assert ended.record.termination.exited.code == 0
    assert ended.record.boot_id == executor.service.boot_id


async def test_no_ticket(executor):
    request = executor.request()
    request.ClearField("ticket")
    await refused(executor, request)


async def test_ticket_signed_by_somebody_else(executor):
    request = executor.request()
    forger = signing.Signer(signing.generate().private_pem)
    names = {"executor_id": executor.service.executor_id, "boot_id": executor.service.boot_id}
    names["since"] = executor.tell()
    request.ticket.CopyFrom(ticket(forger, request.run_spec, **names))
    await refused(executor, request)


async def test_forger_that_uses_storages_key_id(executor):
    request = executor.request()
    forger = signing.Signer(signing.generate().private_pem, key_id=executor.keys.tickets.key_id)
    names = {"executor_id": executor.service.executor_id, "boot_id": executor.service.boot_id}
    names["since"] = executor.tell()
    request.ticket.CopyFrom(ticket(forger, request.run_spec, **names))
    await refused(executor, request)


async def test_signature_made_for_another_purpose(executor):
    request = executor.request()
    signature = executor.keys.tickets.sign("crucible.record.v1", request.ticket.payload)
    request.ticket.CopyFrom(
        SignedBytes(payload=request.ticket.payload, key_id=signature.key_id, signature=signature.signature)
    )
    await refused(executor, request)


async def test_altered_payload(executor):
    request = executor.request()
    request.ticket.payload = request.ticket.payload + b"\x10\x01"
    await refused(executor, request)


async def test_expired_ticket(executor):
    """Its lease was given so long ago that the work may be somebody else's by now."""
    since = executor.tell()
    executor.uptime.ahead += 15.1
    await refused(executor, executor.request(since=since))


async def test_what_a_worker_waited_for_its_ticket_does_not_age_it(executor):
    since = executor.tell()
    executor.uptime.ahead += 20
    assert (await executor.execute({"out": "hello"}, since=since, waited=19)).stdout == b"hello"
    await refused_again(executor, executor.request(since=since, waited=4.9))


async def test_late_ticket_gives_only_what_is_left_of_its_leases_grace(executor):
    since = executor.tell()
    executor.uptime.ahead += 14.7
    ended = await executor.execute({"block": True}, since=since, permit=15)
    assert ended.record.termination.killed.cause == KILL_CAUSE_PERMIT_EXPIRED
    ran = ended.record.end_time.ToNanoseconds() - ended.record.accept_time.ToNanoseconds()
    assert ran < 1e9


def later(told):
    told.uptime.seconds += 3600
    return told


def earlier(told):
    told.uptime.nanos -= 1
    return told


def unsealed(told):
    told.ClearField("seal")
    return told


@pytest.mark.parametrize("forge", [later, earlier, unsealed])
async def test_ticket_that_rests_on_a_time_which_this_start_did_not_tell(executor, forge):
    """Nobody can get a ticket now that is good in an hour, nor make an old one young."""
    executor.uptime.ahead += 3600
    await refused(executor, executor.request(since=forge(executor.tell())))


async def test_ticket_that_rests_on_no_time_or_on_that_of_another_start(executor):
    await refused(executor, executor.request(since=ex.ExecutorTime(boot_id=executor.service.boot_id)))
    await refused(executor, executor.request(since=ExecutorClock(executor.service.boot_id).tell()))


@pytest.mark.parametrize("waited", [-1, 3600])
async def test_ticket_that_was_made_before_it_was_asked_for_or_is_yet_to_be_made(executor, waited):
    await refused(executor, executor.request(waited=waited))


async def test_ticket_for_another_executor(executor):
    await refused(executor, executor.request(executor_id="x-other"))


async def test_ticket_for_another_start(executor):
    await refused(executor, executor.request(boot_id="0" * 32))


async def test_spec_that_the_ticket_is_not_for(executor):
    request = executor.request()
    request.run_spec += b"\x12\x00"
    await refused(executor, request)


@pytest.mark.parametrize(
    "changes",
    [{"run_id": "x"}, {"evaluation": "evaluations/../../etc"}, {"attempt": 7}, {"attempt": 0}],
    ids=["no run id", "another evaluation", "another attempt", "no attempt"],
)
async def test_run_id_that_is_not_that_of_its_evaluation_and_attempt(executor, changes):
    request = executor.request()
    body = Ticket.FromString(request.ticket.payload)
    for name, value in changes.items():
        setattr(body, name, value)
    payload = body.SerializeToString()
    signature = executor.keys.tickets.sign("crucible.ticket.v1", payload)
    request.ticket.CopyFrom(SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature))
    await refused(executor, request)


async def test_replayed_ticket_starts_nothing(executor):
    request = executor.request({"name": "once"})
    await collect(executor.stub.Execute(request), executor.keys)
    with pytest.raises(AlreadyExistsError) as caught:
        await collect(executor.stub.Execute(request), executor.keys)
    assert caught.value.reason == "RUN_EXISTS"
    assert executor.engine.started() == ["once"]


async def test_limit_above_the_ceiling(executor):
    error = await refused(
        executor, executor.request(asked=limits(memory_bytes=1 << 50)), FailedPreconditionError, "ABOVE_CEILING"
    )
    assert "memory_bytes" in error.message


async def test_not_a_number_is_above_every_ceiling(executor):
    with pytest.raises(CallError):
        await executor.execute(asked=limits(cpus=float("nan")))
    assert executor.engine.created == 0


async def test_negative_limit(executor):
    await refused(executor, executor.request(asked=limits(processes=-1)), InvalidArgumentError, "INVALID_FIELD")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [File(path="a", content=b"1"), File(path="a/b", content=b"2")], "entrypoint": "a"},
        {"args": ["x" * 30_000] * 40},
        {"env": {"A": "x" * 200_000}},
    ],
)
async def test_program_that_no_sandbox_can_take_is_refused_before_it_counts_as_an_attempt(executor, changes):
    made = Program(**{"runtime": "python", "files": [File(path="main.py", content=b"{}")], **changes})
    run_spec = ex.RunSpec(program=made, engine="scripted").SerializeToString()
    request = executor.request()
    request.run_spec = run_spec
    names = {"executor_id": executor.service.executor_id, "boot_id": executor.service.boot_id}
    names["since"] = executor.tell()
    request.ticket.CopyFrom(ticket(executor.keys.tickets, run_spec, **names))
    await refused(executor, request, InvalidArgumentError, "INVALID_FIELD")


@pytest.mark.parametrize("process", ["gateway", "storage", "executor"])
async def test_other_processes_may_call_nothing(executor, process):
    address = f"127.0.0.1:{executor.service.port}"
    async with connect(address, executor.keys.tls(process), "executor") as channel:
        stub = ExecutorServiceStub(channel)
        with pytest.raises(PermissionDeniedError):
            await collect(stub.Execute(executor.request()), executor.keys)
    assert executor.engine.created == 0


async def test_caller_without_a_certificate_gets_nowhere(executor):
    import grpc

    roots = (executor.keys.folder / "worker/ca.crt").read_bytes()
    options = [("grpc.ssl_target_name_override", "executor")]
    address = f"127.0.0.1:{executor.service.port}"
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await collect(ExecutorServiceStub(channel).Execute(executor.request(), timeout=5), executor.keys)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert executor.engine.created == 0


async def test_worker_does_not_talk_to_an_executor_with_another_certificate(executor):
    async with connect(f"127.0.0.1:{executor.service.port}", executor.keys.tls("worker"), "storage") as channel:
        with pytest.raises(UnavailableError):
            await collect(ExecutorServiceStub(channel).Execute(executor.request(), timeout=5), executor.keys)
