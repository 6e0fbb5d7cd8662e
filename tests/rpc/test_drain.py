import asyncio
import os
import signal
import time
from datetime import timedelta

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crucible_rpc import errors
from crucible_rpc.errors import StartError
from tests.rpc.echo_servicer import EchoStub, say, within

pytestmark = pytest.mark.slow


class Held:
    """A handler that stays until it is let go."""

    def __init__(self) -> None:
        self.entered, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, context, text):
        self.entered.set()
        await self.go.wait()


async def test_drain_lets_a_stream_finish_while_health_says_not_serving(server, dial, servicer):
    servicer.act = held = Held()
    channel = await dial(server)
    health = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="test.Echo"))
    statuses = watch.__aiter__()
    assert (await within(anext(statuses))).status == health_pb2.HealthCheckResponse.SERVING
    stream = asyncio.create_task(_values(EchoStub(channel).down(say("last"))))
    await within(held.entered.wait())
    told = []
    server.on_drain(lambda: told.append(server.draining.is_set()))
    assert server.serving
    drained = asyncio.create_task(server.drain())
    assert (await within(anext(statuses))).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await within(server.draining.wait())
    assert not server.serving
    assert told == [True]
    for service in ("", "test.Echo"):
        answer = await within(health.Check(health_pb2.HealthCheckRequest(service=service)))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(errors.UnavailableError) as caught:
        await within(EchoStub(channel).unary(say("new")))
    assert caught.value.reason == "SHUTTING_DOWN"
    assert not drained.done()
    held.go.set()
    assert await within(stream) == ["first", "last"]
    await within(drained)


async def test_drain_is_bounded_and_what_is_left_ends_unavailable(server, dial, servicer):
    servicer.act = held = Held()
    stub = EchoStub(await dial(server))
    calls = [
        asyncio.create_task(_values(stub.down(say("x")))),
        asyncio.create_task(_awaited(stub.up(iter([say("x")])))),
    ]
    await within(held.entered.wait())
    await within(servicer.called(2))
    start = time.monotonic()
    await within(server.drain(timedelta(milliseconds=200)))
    assert 0.2 <= time.monotonic() - start < 3
    with pytest.raises(errors.UnavailableError) as caught:
        await within(calls[0])
    assert caught.value.reason == "SHUTTING_DOWN"
    with pytest.raises(errors.UnavailableError):  # was retried, and then found nobody
        await within(calls[1])


async def test_a_handler_that_waits_for_draining_ends_the_drain_early(server, dial, servicer):
    async def act(context, text):
        await server.draining.wait()

    servicer.act = act
    stream = asyncio.create_task(_values(EchoStub(await dial(server)).down(say("bye"))))
    await within(servicer.called(1))
    start = time.monotonic()
    await within(server.drain(timedelta(seconds=30)))
    assert time.monotonic() - start < 3
    assert await within(stream) == ["first", "bye"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_returns_after_a_signal(server, dial, number):
    running = asyncio.create_task(server.run())
    await within(EchoStub(await dial(server)).unary(say("x")))
    os.kill(os.getpid(), number)
    await within(running)
    assert not server.serving


async def test_a_second_signal_cuts_the_grace_short(server, dial, servicer):
    servicer.act = held = Held()
    running = asyncio.create_task(server.run())
    stream = asyncio.create_task(_values(EchoStub(await dial(server)).down(say("x"))))
    await within(held.entered.wait())
    start = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    await within(server.draining.wait())
    os.kill(os.getpid(), signal.SIGTERM)
    await within(running)
    assert time.monotonic() - start < 4
    with pytest.raises(errors.UnavailableError):
        await within(stream)


async def test_run_ends_with_the_event_it_is_given(server):
    stop = asyncio.Event()
    running = asyncio.create_task(server.run(stop))
    stop.set()
    await within(running)


async def test_a_second_server_on_the_same_port_fails_with_one_clear_line(server, serve):
    with pytest.raises(StartError) as caught:
        await serve(listen=f"127.0.0.1:{server.port}")
    text = str(caught.value)
    assert text.startswith(f"storage cannot listen on 127.0.0.1:{server.port}: Address already in use")
    assert "\n" not in text


@pytest.mark.parametrize("listen", ["203.0.113.7:9101", "nonsense", "127.0.0.1:99999", "127.0.0.1:x"])
async def test_an_address_that_is_not_usable_fails_with_one_clear_line(serve, listen):
    with pytest.raises(StartError, match="storage cannot listen on") as caught:
        await serve(listen=listen)
    assert "\n" not in str(caught.value)


async def _values(stream):
    return [message.value async for message in stream]


async def _awaited(call):
    return await call


async def test_health_says_that_a_process_cannot_do_its_work_and_again_that_it_can(server, dial, stub):
    health = health_pb2_grpc.HealthStub(await dial(server))
    watch = health.Watch(health_pb2.HealthCheckRequest(service="test.Echo"))
    statuses = aiter(watch)
    assert (await within(anext(statuses))).status == health_pb2.HealthCheckResponse.SERVING
    await server.set_serving("its engine failed")
    assert (await within(anext(statuses))).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (server.serving, server.not_serving) == (False, "its engine failed")
    await within(stub.unary(say("still answered")))
    await server.set_serving("")
    assert (await within(anext(statuses))).status == health_pb2.HealthCheckResponse.SERVING
    assert server.serving
    watch.cancel()
