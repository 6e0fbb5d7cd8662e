"""`CallError` to a gRPC status with `google.rpc` details, and back: the one table of codes."""

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from crucible_rpc import errors

DOMAIN = "crucible"
DETAILS_KEY = "grpc-status-details-bin"

# A status travels in headers, of which gRPC peers accept 8 KiB by default: the message, with each byte percent-encoded
# at worst, and the details in base64, with the message once more.
MAX_DETAILS_BYTES = 3072
MAX_MESSAGE_BYTES = 1024
MAX_INFO_BYTES = 1024
MAX_VALUE_BYTES = 256
MAX_ENTRIES = 64

# gRPC refuses such a message before any code of ours sees the call: its sizes are in the text alone.
_TOO_LARGE = re.compile(r"(SERVER|CLIENT): Received message larger than max \((\d{1,20}) vs\. (\d{1,20})\)")

_CODES: dict[type[errors.CallError], grpc.StatusCode] = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.AbortedError: grpc.StatusCode.ABORTED,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.OutOfRangeError: grpc.StatusCode.OUT_OF_RANGE,
    errors.DataLossError: grpc.StatusCode.DATA_LOSS,
    errors.UnimplementedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.CallCancelledError: grpc.StatusCode.CANCELLED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}
_ERRORS = {code: error for error, code in _CODES.items()}
_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class Status(NamedTuple):
    """What a server answers instead of a message: arguments of `ServicerContext.abort`."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def code_of(error: errors.CallError) -> grpc.StatusCode:
    """The status code of an error; that of its nearest listed class."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return grpc.StatusCode.INTERNAL


def to_status(error: errors.CallError) -> Status:
    """The status that tells a client of `error`, with ErrorInfo, BadRequest and RetryInfo, cut to fit into headers."""
    code = code_of(error)
    message = _cut(error.message, MAX_MESSAGE_BYTES)
    rich = status_pb2.Status(code=code.value[0], message=message)
    rich.details.add().Pack(_info(error))
    if isinstance(error, errors.RetryableError) and error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(max(error.retry_after, timedelta(0)))
        rich.details.add().Pack(retry)
    if isinstance(error, errors.InvalidArgumentError) and error.violations:
        rich.details.add().Pack(_bad_request(error.violations, MAX_DETAILS_BYTES - rich.ByteSize() - 64))
    return Status(code, message, ((DETAILS_KEY, rich.SerializeToString()),))


def _info(error: errors.CallError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo(reason=_cut(error.reason, 64), domain=DOMAIN)
    room = MAX_INFO_BYTES
    for key, value in error.metadata.items():
        short_key, short_value = _cut(key, 64), _cut(value, MAX_VALUE_BYTES)
        room -= len(short_key.encode()) + len(short_value.encode()) + 8
        if room < 0:
            break
        info.metadata[short_key] = short_value
    return info


def _bad_request(violations: Iterable[errors.FieldViolation], room: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in violations:
        one = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, MAX_VALUE_BYTES), description=_cut(violation.description, MAX_VALUE_BYTES)
        )
        room -= one.ByteSize() + 4
        if room < 0:
            break
        bad.field_violations.append(one)
    return bad


def from_rpc_error(error: grpc.RpcError, peer: str = "the service") -> errors.CallError:
    """The typed error that a failed call stands for.

    What the peer said is kept only when it carries Crucible's ErrorInfo. What the transport said (addresses, TLS
    texts) stays in the exception's cause and is replaced by a constant sentence, so that it can be shown to anybody.

    Args:
        error: what `grpc` or `grpc.aio` raised.
        peer: who was called, for the sentence.
    """
    call: Any = error
    code = call.code() or grpc.StatusCode.UNKNOWN
    rich = _rich_status(call.trailing_metadata(), code)
    info = _detail(rich, error_details_pb2.ErrorInfo) if rich is not None else None
    if rich is None or info is None or info.domain != DOMAIN:
        return _without_details(code, call.details() or "", peer)
    metadata = {_cut(key, 64): _cut(value, MAX_VALUE_BYTES) for key, value in list(info.metadata.items())[:MAX_ENTRIES]}
    return _typed(code, _cut(info.reason, 64), _cut(rich.message, MAX_MESSAGE_BYTES), rich, metadata)


def _typed(
    code: grpc.StatusCode, reason: str, message: str, rich: status_pb2.Status, metadata: dict[str, str]
) -> errors.CallError:
    kind = _ERRORS.get(code, errors.InternalError)
    if kind is errors.InvalidArgumentError:
        return errors.InvalidArgumentError(reason, message, _violations(rich), metadata=metadata)
    if issubclass(kind, errors.RetryableError):
        return kind(reason, message, retry_after=_retry_after(rich), metadata=metadata)
    return kind(reason, message, metadata=metadata)


def _without_details(code: grpc.StatusCode, details: str, peer: str) -> errors.CallError:
    """The error of a call that gRPC itself ended: transport, deadline, size limit, unknown method."""
    reason = code.name
    if code is grpc.StatusCode.UNAVAILABLE:
        text = f"{peer} cannot be reached now; try again in a moment"
        return errors.UnavailableError("PEER_UNAVAILABLE", text, retry_after=timedelta(seconds=1))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceededError(reason, f"{peer} did not answer within the call's deadline")
    if code is grpc.StatusCode.CANCELLED:
        return errors.CallCancelledError(reason, f"{peer} cancelled the call")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (sizes := _TOO_LARGE.search(details)):
        return _too_large(peer, *sizes.groups())
    if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL) or code not in _ERRORS:
        return errors.InternalError("INTERNAL", f"{peer} failed; its log says why")
    return _ERRORS[code](reason, _cut(details, MAX_MESSAGE_BYTES) or f"{peer} answered {code.name}")


def _too_large(peer: str, side: str, size: str, limit: str) -> errors.ResourceExhaustedError:
    whose = "the message" if side == "SERVER" else f"the answer of {peer}"
    taken = f"{peer} takes" if side == "SERVER" else "this client takes"
    text = f"{whose} has {size} bytes, and {taken} at most {limit}"
    return errors.ResourceExhaustedError("MESSAGE_TOO_LARGE", text, metadata={"size": size, "limit": limit})


def _rich_status(metadata: Any, code: grpc.StatusCode) -> status_pb2.Status | None:
    """The details header parsed, or None when it is absent, too large, damaged or of another code."""
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes) and len(value) <= 4 * MAX_DETAILS_BYTES:
            try:
                rich = status_pb2.Status.FromString(value)
            except DecodeError:
                return None
            return rich if rich.code == code.value[0] else None
    return None


def _detail(rich: status_pb2.Status, kind: type[Any]) -> Any:
    for packed in list(rich.details)[:16]:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            try:
                packed.Unpack(message)
            except DecodeError:
                return None
            return message
    return None


def _violations(rich: status_pb2.Status) -> tuple[errors.FieldViolation, ...]:
    bad = _detail(rich, error_details_pb2.BadRequest)
    if bad is None:
        return ()
    return tuple(
        errors.FieldViolation(_cut(one.field, MAX_VALUE_BYTES), _cut(one.description, MAX_VALUE_BYTES))
        for one in bad.field_violations[:MAX_ENTRIES]
    )


def _retry_after(rich: status_pb2.Status) -> timedelta | None:
    retry = _detail(rich, error_details_pb2.RetryInfo)
    if retry is None or not 0 <= retry.retry_delay.seconds <= 86_400:
        return None
    return timedelta(seconds=retry.retry_delay.seconds, microseconds=retry.retry_delay.nanos // 1000)


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8; what was cut ends with an ellipsis."""
    if len(text) * 4 <= limit:
        return text
    raw = text.encode(errors="replace")  # a lone surrogate can be in no message
    if len(raw) <= limit:
        return raw.decode()
    return raw[: limit - 3].decode(errors="ignore") + "…"


def code_name(number: int) -> str:
    """The name of a status code by its number, `UNKNOWN` when there is none."""
    return _NAMES.get(number, "UNKNOWN")
