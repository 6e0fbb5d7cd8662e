import asyncio
import socket
import time
from collections import Counter
from datetime import timedelta

import grpc
import pytest
from prometheus_client import CollectorRegistry

from crucible.executor.v1 import inspection_service_pb2 as executor_inspections
from crucible.gateway.v1 import admin_service_pb2, platform_service_pb2
from crucible.storage.v1 import inspection_service_pb2 as storage_inspections
from crucible.storage.v1 import tenant_service_pb2
from crucible_rpc import errors, request_id
from crucible_rpc.channel import ONCE, calling, connect
from tests.rpc.echo_servicer import EchoStub, say, sayings, within

pytestmark = pytest.mark.slow


async def test_a_unary_call_without_a_timeout_ends_at_the_default_deadline(server, dial, servicer):
    seen = []

    async def act(context, text):
        seen.append(context.time_remaining())
        await asyncio.sleep(60)

    servicer.act = act
    stub = EchoStub(await dial(server, default_deadline=timedelta(milliseconds=300)))
    start = time.monotonic()
    with pytest.raises(errors.DeadlineExceededError, match="storage did not answer"):
        await within(stub.unary(say("x")))
    assert 0.2 < time.monotonic() - start < 2
    assert seen[0] <= 0.3


async def test_a_stream_has_no_deadline_unless_asked(server, dial, servicer):
    seen = []

    async def act(context, text):
        seen.append(context.time_remaining())

    servicer.act = act
    stub = EchoStub(await dial(server, default_deadline=timedelta(milliseconds=300)))
    async for _ in stub.down(say("x")):
        pass
    async for _ in stub.down(say("x"), timeout=5):
        pass
    # grpc tells a call without a deadline by one that is beyond every clock
    assert seen[0] is None or seen[0] > 1e6
    assert 4 < seen[1] < 6


async def test_unavailable_is_retried_and_nothing_else(stub, servicer):
    async def unavailable_twice(context, text):
        if len(servicer.calls) < 3:
            raise errors.UnavailableError("BUSY", "wait")

    servicer.act = unavailable_twice
    assert (await within(stub.unary(say("x")))).value == "x"
    assert len(servicer.calls) == 3
    for error in (
        errors.AbortedError("A", "a"),
        errors.ResourceExhaustedError("A", "a"),
        errors.InternalError("A", "a"),
        errors.DeadlineExceededError("A", "a"),
    ):
        servicer.calls.clear()

        async def refuse(context, text, error=error):
            raise error

        servicer.act = refuse
        with pytest.raises(type(error)):
            await within(stub.unary(say("x")))
        assert len(servicer.calls) == 1, error


def test_every_method_that_is_not_retried_exists():
    storage = (storage_inspections, tenant_service_pb2)
    contracts = (admin_service_pb2, platform_service_pb2, executor_inspections, *storage)
    known = {
        (service.full_name, method)
        for contract in contracts
        for service in contract.DESCRIPTOR.services_by_name.values()
        for method in service.methods_by_name
    }
    assert {(one["service"], one["method"]) for one in ONCE} <= known


async def test_retries_end_after_five_attempts(stub, servicer):
    async def never(context, text):
        raise errors.UnavailableError("BUSY", "wait")

    servicer.act = never
    with pytest.raises(errors.UnavailableError):
        await within(stub.unary(say("x")))
    assert len(servicer.calls) == 5


async def test_a_peer_that_is_down_is_named_with_a_retry_hint_and_without_its_address(keys, resources):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        channel = connect(f"127.0.0.1:{port}", keys.client("worker"), "storage")
        resources.push_async_callback(channel.close)
        with pytest.raises(errors.UnavailableError) as caught:
            await within(EchoStub(channel).unary(say("x")))
        assert caught.value.message == "storage cannot be reached now; try again in a moment"
        assert caught.value.reason == "PEER_UNAVAILABLE"
        assert caught.value.retry_after == timedelta(seconds=1)
        with pytest.raises(errors.UnavailableError):
            async for _ in EchoStub(channel).down(say("x")):
                pass


async def test_a_restarted_peer_is_found_again_within_two_seconds(serve, dial):
    server = await serve()
    stub = EchoStub(await dial(server))
    await within(stub.unary(say("x")))
    await server.drain(timedelta(0))
    with pytest.raises(errors.UnavailableError):
        await within(stub.unary(say("x")))
    await serve(listen=f"127.0.0.1:{server.port}", registry=CollectorRegistry())
    start = time.monotonic()
    while True:
        try:
            await within(stub.unary(say("x")))
            break
        except errors.UnavailableError:
            assert time.monotonic() - start < 2
    assert time.monotonic() - start < 2


async def test_the_current_request_id_travels(stub, servicer):
    seen = []

    async def act(context, text):
        seen.append(request_id.current())

    servicer.act = act

    async def as_if_serving():
        request_id.begin("from-outside.1")
        await stub.unary(say("x"))
        async for _ in stub.down(say("x")):
            pass

    await within(asyncio.create_task(as_if_serving()))
    assert seen == ["from-outside.1"] * 2


async def test_a_request_id_comes_back_in_metadata(stub):
    call = stub.unary(say("x"), metadata=(("x-request-id", "mine"),))
    await within(call)
    assert (await call.trailing_metadata())["x-request-id"] == "mine"
    stream = stub.down(say("x"), metadata=(("x-request-id", "mine"),))
    assert (await within(stream.initial_metadata()))["x-request-id"] == "mine"
    assert [message.value async for message in stream] == ["first", "x"]


@pytest.mark.parametrize("offered", ["", "x" * 65, "a b", "a/b", 'a"', "ü".encode().decode("latin-1")])
async def test_a_malformed_request_id_is_replaced(stub, servicer, offered):
    seen = []

    async def act(context, text):
        seen.append(request_id.current())

    servicer.act = act
    try:
        await within(stub.unary(say("x"), metadata=(("x-request-id", offered),)))
    except Exception:  # grpc's own client refuses some of them
        seen.append(request_id.accepted(offered))
    assert len(seen[0]) == 16
    assert seen[0] != offered


async def test_an_error_carries_the_request_id(stub, servicer):
    async def act(context, text):
        raise errors.NotFoundError("NONE", "none")

    servicer.act = act
    with pytest.raises(errors.NotFoundError) as caught:
        await within(stub.unary(say("x"), metadata=(("x-request-id", "mine"),)))
    assert dict(caught.value.__cause__.trailing_metadata())["x-request-id"] == "mine"


async def test_a_reader_that_stops_early_ends_the_call(stub, servicer):
    ended = asyncio.Event()

    async def act(context, text):
        context.add_done_callback(lambda _: ended.set())
        await asyncio.sleep(60)

    servicer.act = act
    async for message in stub.down(say("x")):
        assert message.value == "first"
        break
    await within(ended.wait())


async def test_a_bidirectional_call_can_be_read_and_written_by_hand(stub, servicer):
    call = stub.both()
    for text in ("a", "b"):
        await within(call.write(say(text)))
        assert (await within(call.read())).value == text
    await call.done_writing()
    assert await within(call.read()) is grpc.aio.EOF
    assert (await within(stub.up(sayings("a", "b")))).value == "a,b"


async def read_on(call, by_hand=None):
    """Reads to the end, after what is sent by hand was sent."""
    if by_hand is not None:
        async for message in by_hand:
            await call.write(message)
        await call.done_writing()
    async for _ in call:
        pass


@pytest.mark.parametrize("kind", ["stream-unary", "stream-stream", "stream-stream by hand"])
async def test_a_refusal_is_seen_while_messages_are_still_sent(server, dial, servicer, kind):
    stub = EchoStub(await dial(server, "gateway"))
    seen = Counter()
    for _ in range(100):
        messages = sayings(*["x" * 1000] * 64)
        if kind == "stream-unary":
            ended = stub.up(messages)
        elif kind == "stream-stream":
            ended = read_on(stub.both(messages))
        else:
            ended = read_on(stub.both(), by_hand=messages)
        with pytest.raises(errors.CallError) as caught:
            await within(ended)
        seen[caught.value.reason] += 1
    assert seen == {"PEER_NOT_PERMITTED": 100}
    assert servicer.calls == []


async def test_a_write_after_an_early_end_says_that_it_is_over(stub, servicer):
    call = stub.both()
    call.cancel()
    with pytest.raises(asyncio.InvalidStateError):
        await within(call.write(say("x")))
    call = stub.both()
    await call.done_writing()
    assert await within(call.read()) is grpc.aio.EOF
    with pytest.raises(asyncio.InvalidStateError):
        await within(call.write(say("x")))


async def test_a_message_that_the_core_rejects_ends_the_call_though_no_status_comes(stub, servicer):
    call = stub.both()
    await within(call.wait_for_connection())
    large = say("x" * (8 << 20))  # more than is sent at once
    results = await within(asyncio.gather(*(call.write(large) for _ in range(2)), return_exceptions=True))
    assert [type(one) for one in results if one is not None] == [errors.InternalError]


async def test_calling_converts_for_channels_made_elsewhere():
    rpc_error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "tcp 10.0.0.1"
    )
    with pytest.raises(errors.UnavailableError, match="storage cannot be reached"):
        async with calling("storage"):
            raise rpc_error
    with pytest.raises(errors.UnavailableError, match="storage cannot be reached"), calling("storage"):
        raise rpc_error
    with pytest.raises(KeyError):
        async with calling("storage"):
            raise KeyError
