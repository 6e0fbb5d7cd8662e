from datetime import timedelta

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_rpc import errors
from crucible_rpc.errors import FieldViolation
from crucible_rpc.status import DETAILS_KEY, code_of, from_rpc_error, to_status
from tests.rpc.echo_servicer import say, within


def rpc_error(code, details="", metadata=()):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


def test_a_status_fits_into_a_header_whatever_the_error_holds():
    huge = errors.InvalidArgumentError(
        "BAD",
        "m" * 100_000,
        [FieldViolation(f"f{n}" * 1000, "ü" * 10_000) for n in range(1000)],
        metadata={f"k{n}" * 100: "v" * 10_000 for n in range(1000)},
    )
    status = to_status(huge)
    assert len(status.details.encode()) <= 1024
    assert len(status.trailing_metadata[0][1]) <= 3072 + 16
    back = from_rpc_error(rpc_error(status.code, status.details, status.trailing_metadata))
    assert isinstance(back, errors.InvalidArgumentError)
    assert back.reason == "BAD"


async def test_a_huge_error_still_reaches_the_caller(stub, servicer):
    async def act(context, text):
        raise errors.InvalidArgumentError(
            "BAD",
            "ü" * 100_000,
            [FieldViolation(f"f{n}", "ü" * 10_000) for n in range(1000)],
            metadata={f"k{n}": "ü" * 10_000 for n in range(1000)},
        )

    servicer.act = act
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await within(stub.unary(say("x")))
    assert caught.value.reason == "BAD"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_status_without_details_becomes_the_error_of_its_code(code):
    error = from_rpc_error(rpc_error(code, "ipv4:10.0.0.1:9101 said no"), "storage")
    expected = grpc.StatusCode.INTERNAL if code is grpc.StatusCode.UNKNOWN else code
    assert code_of(error) is expected
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        assert "10.0.0.1" not in error.message
        assert error.message.startswith("storage")


def test_details_of_another_code_or_domain_are_not_believed():
    status = to_status(errors.NotFoundError("SECRET", "none"))
    error = from_rpc_error(rpc_error(grpc.StatusCode.ABORTED, "other", status.trailing_metadata))
    assert (type(error), error.reason) == (errors.AbortedError, "ABORTED")
    foreign = status_pb2.Status(code=code_pb2.NOT_FOUND, message="m")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="FOREIGN", domain="googleapis.com"))
    metadata = ((DETAILS_KEY, foreign.SerializeToString()),)
    assert from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "d", metadata)).reason == "NOT_FOUND"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_damaged_details_never_raise(raw):
    good = to_status(errors.ResourceExhaustedError("FULL", "full", retry_after=timedelta(seconds=1))).trailing_metadata[
        0
    ][1]
    for value in (raw, good[: len(raw)] + raw, raw * 1000):
        error = from_rpc_error(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "d", ((DETAILS_KEY, value),)))
        assert isinstance(error, errors.ResourceExhaustedError)


def test_an_own_subclass_has_the_code_of_its_parent():
    class LeaseLostError(errors.AbortedError):
        pass

    assert to_status(LeaseLostError("LEASE_LOST", "lost")).code is grpc.StatusCode.ABORTED


def test_a_synchronous_clients_error_is_understood_too():
    class Sync(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.NOT_FOUND

        def details(self):
            return "none"

        def trailing_metadata(self):
            return to_status(errors.NotFoundError("NONE", "none")).trailing_metadata

    assert from_rpc_error(Sync()).reason == "NONE"
