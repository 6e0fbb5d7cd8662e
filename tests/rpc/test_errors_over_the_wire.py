import asyncio
import logging
import re
from datetime import timedelta

import grpc
import pytest
from prometheus_client import CollectorRegistry

from crucible_rpc import errors
from crucible_rpc.errors import FieldViolation
from tests.rpc.echo_servicer import EchoServicer, EchoStub, call_each_kind, say, within

pytestmark = pytest.mark.slow

KINDS = {"unary-unary", "unary-stream", "stream-unary", "stream-stream"}


def raising(error):
    async def act(context, text):
        raise error

    return act


async def test_all_four_kinds_answer(stub):
    assert await within(call_each_kind(stub, "hello")) == {
        "unary-unary": ["hello"],
        "unary-stream": ["first", "hello"],
        "stream-unary": ["hello"],
        "stream-stream": ["hello"],
    }


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgumentError(
            "BAD", "it is bad", [FieldViolation("spec.limits", "at most 3")], metadata={"a": "b"}
        ),
        errors.NotFoundError("NO_SUCH", "there is none", metadata={"name": "x"}),
        errors.AlreadyExistsError("THERE", "it is there"),
        errors.FailedPreconditionError("NOT_NOW", "not in this state"),
        errors.PermissionDeniedError("NO", "not you"),
        errors.UnauthenticatedError("WHO", "who are you"),
        errors.ResourceExhaustedError("FULL", "no slot", retry_after=timedelta(milliseconds=1500)),
        errors.AbortedError("CONFLICT", "somebody was first"),
        errors.DeadlineExceededError("LATE", "too late"),
        errors.OutOfRangeError("END", "past the end"),
        errors.DataLossError("LOST", "bytes are missing"),
        errors.UnimplementedError("NOT_HERE", "not here"),
        errors.InternalError("BROKEN", "broken"),
        errors.CallCancelledError("GONE", "cancelled"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_arrives_as_it_was_raised_for_all_kinds(stub, servicer, error):
    servicer.act = raising(error)
    answers = await within(call_each_kind(stub, "x"))
    assert set(answers) == KINDS
    for arrived in answers.values():
        assert type(arrived) is type(error)
        assert vars(arrived) == vars(error)


async def test_unavailable_arrives_with_its_retry_hint(stub, servicer):
    servicer.act = raising(errors.UnavailableError("BUSY", "wait", retry_after=timedelta(seconds=3)))
    with pytest.raises(errors.UnavailableError) as caught:
        await within(stub.unary(say("x")))
    assert caught.value.retry_after == timedelta(seconds=3)
    assert caught.value.reason == "BUSY"


async def test_an_unknown_exception_does_not_leak_its_text(stub, servicer, caplog):
    servicer.act = raising(RuntimeError("password=hunter2"))
    with caplog.at_level(logging.ERROR):
        answers = await within(call_each_kind(stub, "x"))
    for arrived in answers.values():
        assert type(arrived) is errors.InternalError
        assert arrived.reason == "INTERNAL"
        cause = arrived.__cause__
        assert cause.code() is grpc.StatusCode.INTERNAL
        assert cause.details().startswith("internal error; request id ")
        assert "hunter2" not in repr(cause.trailing_metadata()) + repr(cause) + str(arrived)
    assert caplog.text.count("password=hunter2") == 4  # the log has it, with its traceback
    assert "Traceback" in caplog.text


async def test_an_abort_by_the_handler_passes(stub, servicer):
    async def act(context, text):
        await context.abort(grpc.StatusCode.NOT_FOUND, "by hand")

    servicer.act = act
    for arrived in (await within(call_each_kind(stub, "x"))).values():
        assert type(arrived) is errors.NotFoundError
        assert arrived.message == "by hand"


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"], ids=["damaged", "not UTF-8"])
async def test_a_malformed_message_is_the_callers_fault(stub, servicer, raw):
    async def one():
        yield raw

    for call in (stub.raw(raw), stub.raw_up(one())):
        with pytest.raises(errors.InvalidArgumentError) as caught:
            await within(call)
        assert caught.value.reason == "MALFORMED_MESSAGE"
    assert servicer.calls == []


async def test_an_answer_that_cannot_be_encoded_does_not_leak(stub, servicer, monkeypatch):
    async def act(context, text):
        raise TypeError("secret")

    servicer.act = act
    with pytest.raises(errors.InternalError) as caught:
        await within(stub.unary(say("x")))
    assert "secret" not in str(caught.value.__cause__.details())


async def test_a_method_that_no_service_has_is_unimplemented(stub):
    with pytest.raises(errors.UnimplementedError) as caught:
        await within(stub.missing(say("x")))
    assert caught.value.message == "this server has no such method"


async def test_a_method_that_its_servicer_lacks_is_unimplemented(stub):
    with pytest.raises(errors.UnimplementedError, match=r"/test\.Echo/Silent"):
        await within(stub.silent(say("x")))


async def test_a_message_beyond_the_limit_is_refused_with_the_limit(serve, dial):
    stub = EchoStub(await dial(await serve(max_message_bytes=1000)))
    assert (await within(stub.unary(say("x" * 900)))).value
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        await within(stub.unary(say("x" * 1100)))
    size, error = str(say("x" * 1100).ByteSize()), caught.value
    assert (error.reason, error.metadata) == ("MESSAGE_TOO_LARGE", {"size": size, "limit": "1000"})
    assert error.message == f"the message has {size} bytes, and storage takes at most 1000"
    assert error.retry_after is None  # nobody may send it again


async def test_an_answer_beyond_the_limit_is_refused_with_the_limit(server, dial):
    stub = EchoStub(await dial(server, max_message_bytes=1000))
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        await within(stub.unary(say("x" * 1100)))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    assert "this client takes at most 1000" in caught.value.message


async def test_a_cancelled_wait_inside_a_handler_still_answers(stub, servicer):
    servicer.act = raising(asyncio.CancelledError())
    for arrived in (await within(call_each_kind(stub, "x"))).values():
        assert type(arrived) is errors.InternalError


async def test_a_peers_error_passes_but_its_failures_and_refusals_stay_inside(stub, servicer, serve, dial):
    behind = EchoServicer()
    inner = await serve(servicer=behind, registry=CollectorRegistry())
    to_inner = {process: EchoStub(await dial(inner, process)) for process in ("worker", "gateway")}

    async def ask(caller):
        async def act(context, text):
            await to_inner[caller].unary(say(text))

        servicer.act = act
        with pytest.raises(errors.CallError) as caught:
            await within(stub.unary(say("x")))
        return type(caught.value), caught.value.__cause__.details()

    behind.act = raising(errors.NotFoundError("NONE", "there is none"))
    assert await ask("worker") == (errors.NotFoundError, "there is none")
    behind.act = raising(errors.PermissionDeniedError("NOT_YOURS", "not yours"))
    assert await ask("worker") == (errors.PermissionDeniedError, "not yours")
    behind.act = raising(KeyError("secret"))
    for caller in ("worker", "gateway"):
        kind, details = await ask(caller)
        assert kind is errors.InternalError
        assert re.fullmatch(r"internal error; request id [0-9a-f]{16}", details)


async def test_cancelling_a_call_ends_its_handler(stub, servicer):
    entered, left = asyncio.Event(), asyncio.Event()

    async def act(context, text):
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            left.set()

    servicer.act = act
    for begin in (lambda: stub.unary(say("x")), lambda: _first_two(stub.down(say("x")))):
        entered.clear()
        left.clear()
        call = asyncio.ensure_future(_awaited(begin()))
        await within(entered.wait())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await within(left.wait())


async def _awaited(call):
    return await call


async def _first_two(stream):
    return [message async for message in stream]
