"""What happens around every call that a server answers; one class per subject, composed once when a service is added.

An interceptor maps a `Call` to a `Call`. All four kinds of handler look the same to it: the request is bytes or an
iterator, and a streamed answer is written to the context, so that nothing here knows about kinds. `compose` stacks
them. Order, outermost first: request id, metrics, errors, drain (in `server`), identity and permission, log.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from crucible_rpc import identity, logs, request_id, status
from crucible_rpc.errors import CallCancelledError, CallError, InternalError, UnimplementedError

Call = Callable[[Any, Any], Awaitable[Any]]

_log = logging.getLogger(__name__)
_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


@dataclass(frozen=True, slots=True)
class Method:
    """The RPC that a call is for.

    Attributes:
        full_name: `/package.Service/Method`; `unknown` for whatever no service has.
        streams: whether the answer is a stream.
    """

    full_name: str
    streams: bool


UNKNOWN_METHOD = Method("unknown", streams=True)


class Interceptor(Protocol):
    """Something that happens around calls."""

    def intercept(self, method: Method, call: Call) -> Call:
        """A call that does this interceptor's part around `call`; made once per method."""
        ...


def compose(interceptors: list[Interceptor], method: Method, call: Call) -> Call:
    """`call` inside all interceptors, the first one outermost."""
    for interceptor in reversed(interceptors):
        call = interceptor.intercept(method, call)
    return call


class RequestIds:
    """Takes the caller's `x-request-id` or makes one, keeps it for logs and further calls, and sends it back.

    It is sent in the trailing metadata; for a stream also at once, in the initial metadata.
    """

    def intercept(self, method: Method, call: Call) -> Call:
        """See `Interceptor`."""

        async def with_request_id(request: Any, context: Any) -> Any:
            offered = None
            for key, value in context.invocation_metadata() or ():
                if key == request_id.HEADER:
                    offered = value
                    break
            chosen = request_id.accepted(offered)
            request_id.begin(chosen)
            logs.bind(request_id=chosen)
            metadata = ((request_id.HEADER, chosen),)
            context.set_trailing_metadata(metadata)
            if method.streams:
                await context.send_initial_metadata(metadata)
            return await call(request, context)

        return with_request_id


class RpcMetrics:
    """Counts calls by method and code, their time, and those in flight."""

    _by_registry: ClassVar[WeakKeyDictionary[CollectorRegistry, "RpcMetrics"]] = WeakKeyDictionary()

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter("crucible_rpc_calls", "Calls answered.", ["method", "code"], registry=registry)
        self._seconds = Histogram(
            "crucible_rpc_seconds", "Time to answer.", ["method"], registry=registry, buckets=_LATENCY_BUCKETS
        )
        self._in_flight = Gauge("crucible_rpc_in_flight", "Calls being answered.", ["method"], registry=registry)

    @classmethod
    def of(cls, registry: CollectorRegistry) -> "RpcMetrics":
        """The metrics of a registry, which can hold each name only once."""
        if registry not in cls._by_registry:
            cls._by_registry[registry] = cls(registry)
        return cls._by_registry[registry]

    def intercept(self, method: Method, call: Call) -> Call:
        """See `Interceptor`."""
        in_flight = self._in_flight.labels(method.full_name)
        seconds = self._seconds.labels(method.full_name)
        counters: dict[str, Counter] = {}

        async def measured(request: Any, context: Any) -> Any:
            in_flight.inc()
            start = time.perf_counter()
            code = "UNKNOWN"
            try:
                answer = await call(request, context)
                code = status.code_name(_number(context.code()))
                return answer
            except BaseException as error:
                code = _code_of(error, context)
                raise
            finally:
                in_flight.dec()
                seconds.observe(time.perf_counter() - start)
                if code not in counters:
                    counters[code] = self._calls.labels(method.full_name, code)
                counters[code].inc()

        return measured


class Errors:
    """Turns exceptions into statuses; one that nobody foresaw becomes a constant INTERNAL and is logged.

    A `CallError` of a peer passes as if it were our own, except for what only operators can mend: that the peer failed,
    or refused this process. The caller would take such a PERMISSION_DENIED for its own.
    """

    def intercept(self, method: Method, call: Call) -> Call:
        """See `Interceptor`."""

        async def guarded(request: Any, context: Any) -> Any:
            try:
                return await call(request, context)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError as error:
                if _is_cancelled(context):
                    raise
                # Something that the handler waited for was cancelled. grpc would leave the caller without an answer.
                await _abort(context, _surprise(method, error))
            except CallError as error:
                await _abort(context, _surprise(method, error) if _is_peer_fault(error) else status.to_status(error))
            except Exception as error:
                if _is_cancelled(context):  # the caller left; what broke of that is of no interest to anybody
                    _log.debug("call failed after its caller left", exc_info=True)
                    raise asyncio.CancelledError from None
                await _abort(context, _surprise(method, error))

        return guarded


def _is_cancelled(context: Any) -> bool:
    task = asyncio.current_task()
    return bool(context.cancelled()) or (task is not None and task.cancelling() > 0)


def _is_peer_fault(error: CallError) -> bool:
    if not isinstance(error.__cause__, grpc.RpcError):
        return False
    return identity.is_refusal(error) or isinstance(error, InternalError | UnimplementedError | CallCancelledError)


def _surprise(method: Method, error: BaseException) -> status.Status:
    _log.error("call failed unexpectedly", exc_info=error, extra=logs.fields(method=method.full_name))
    return status.to_status(InternalError("INTERNAL", f"internal error; request id {request_id.current()}"))


async def _abort(context: Any, answer: status.Status) -> None:
    own = tuple(context.trailing_metadata() or ())
    await context.abort(answer.code, answer.details, own + answer.trailing_metadata)


class PeerPermissions:
    """Admits a call when the process named by the peer's certificate may make it; health is for everybody.

    Args:
        permissions: full method to the processes that may call it.
    """

    def __init__(self, permissions: identity.Permissions) -> None:
        self.permissions = dict(permissions)

    def intercept(self, method: Method, call: Call) -> Call:
        """See `Interceptor`."""
        if method.full_name.startswith(identity.HEALTH_PREFIX):
            return call
        permissions = self.permissions
        name = method.full_name

        async def permitted(request: Any, context: Any) -> Any:
            process = identity.peer_process(context)
            logs.bind(caller=process)
            try:
                identity.check(permissions, name, process)
            except CallError:
                _log.warning("call refused", extra=logs.fields(method=name))
                raise
            identity.begin(identity.Identity(process))
            return await call(request, context)

        return permitted


class CallLog:
    """Writes a line per call: method, code, milliseconds, and the fields bound by then (caller, request id, …).

    Args:
        level: of calls that went well; those that did not are logged as INFO, health checks as DEBUG.
    """

    def __init__(self, level: int = logging.INFO) -> None:
        self._level = level

    def intercept(self, method: Method, call: Call) -> Call:
        """See `Interceptor`."""
        health = method.full_name.startswith(identity.HEALTH_PREFIX)
        good = logging.DEBUG if health else self._level
        bad = logging.DEBUG if health else logging.INFO

        async def logged(request: Any, context: Any) -> Any:
            start = time.perf_counter()
            level, code = good, "OK"
            try:
                answer = await call(request, context)
                code = status.code_name(_number(context.code()))
                return answer
            except BaseException as error:
                level, code = bad, _code_of(error, context)
                raise
            finally:
                if _log.isEnabledFor(level):
                    ms = round((time.perf_counter() - start) * 1000, 2)
                    _log.log(level, "call", extra=logs.fields(method=method.full_name, code=code, ms=ms))

        return logged


def _code_of(error: BaseException, context: Any) -> str:
    if isinstance(error, CallError):
        return status.code_of(error).name
    if isinstance(error, grpc.aio.AbortError):
        return status.code_name(_number(context.code()))
    if isinstance(error, asyncio.CancelledError):
        remaining = context.time_remaining()
        return "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
    return "INTERNAL"


def _number(code: Any) -> int:
    """The number of what `ServicerContext.code()` returns: a number before, a StatusCode after it was set."""
    return int(code.value[0]) if isinstance(code, grpc.StatusCode) else int(code or 0)
