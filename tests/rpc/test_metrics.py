import asyncio

import pytest

from crucible_rpc import errors
from tests.rpc.echo_servicer import EchoStub, call_each_kind, say, within

METHODS = ("Unary", "Down", "Up", "Both")
COUNTED = "crucible_rpc_calls_total"


def value(registry, name, **labels):
    return registry.get_sample_value(name, labels)


async def until(condition):
    """Waits for what the server does after the caller has its answer: it counts the call."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # the registry has no event
            await asyncio.sleep(0.005)


async def test_calls_are_counted_by_method_and_code_and_timed(stub, servicer, registry):
    await within(call_each_kind(stub, "x"))

    async def refuse(context, text):
        raise errors.NotFoundError("NONE", "none")

    servicer.act = refuse
    await within(call_each_kind(stub, "x"))
    names = [f"/test.Echo/{method}" for method in METHODS]
    await until(lambda: all(value(registry, COUNTED, method=name, code="NOT_FOUND") for name in names))
    await until(lambda: all(value(registry, COUNTED, method=name, code="OK") for name in names))
    for method in METHODS:
        name = f"/test.Echo/{method}"
        assert value(registry, "crucible_rpc_calls_total", method=name, code="OK") == 1
        assert value(registry, "crucible_rpc_calls_total", method=name, code="NOT_FOUND") == 1
        assert value(registry, "crucible_rpc_seconds_count", method=name) == 2
        assert value(registry, "crucible_rpc_in_flight", method=name) == 0


async def test_refusals_and_surprises_are_counted_by_the_code_that_the_caller_saw(
    server, dial, stub, servicer, registry
):
    with pytest.raises(errors.PermissionDeniedError):
        await within(EchoStub(await dial(server, "gateway")).unary(say("x")))

    async def surprise(context, text):
        raise KeyError

    servicer.act = surprise
    with pytest.raises(errors.InternalError):
        await within(stub.unary(say("x")))
    codes = ("PERMISSION_DENIED", "INTERNAL")
    await until(lambda: all(value(registry, COUNTED, method="/test.Echo/Unary", code=code) == 1 for code in codes))


async def test_calls_in_flight_and_cancelled_ones_are_counted(stub, servicer, registry):
    entered, left = asyncio.Event(), asyncio.Event()

    async def act(context, text):
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            left.set()

    servicer.act = act
    call = stub.unary(say("x"))
    await within(entered.wait())
    assert value(registry, "crucible_rpc_in_flight", method="/test.Echo/Unary") == 1
    call.cancel()
    await within(left.wait())
    await until(lambda: value(registry, COUNTED, method="/test.Echo/Unary", code="CANCELLED") == 1)
    assert value(registry, "crucible_rpc_in_flight", method="/test.Echo/Unary") == 0


async def test_unknown_methods_share_one_label(server, dial, registry):
    channel = await dial(server)
    for n in range(20):
        with pytest.raises(errors.UnimplementedError):
            await within(channel.unary_unary(f"/made.Up/Method{n}")(b""))
    await until(lambda: value(registry, COUNTED, method="unknown", code="UNIMPLEMENTED") == 20)
    methods = {
        sample.labels["method"]
        for metric in registry.collect()
        for sample in metric.samples
        if "method" in sample.labels
    }
    assert {method for method in methods if "made" in method} == set()
