"""The handlers of a servicer as uniform `Call`s, and composed `Call`s as handlers for grpc.

Requests are decoded and answers encoded inside the interceptors, so that a malformed message is INVALID_ARGUMENT and
reaches no parser before its sender is known; grpc itself would answer UNKNOWN with the text of the exception.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from crucible_rpc.errors import InvalidArgumentError, UnimplementedError
from crucible_rpc.interceptors import UNKNOWN_METHOD, Call, Interceptor, Method, compose


class HandlerTable:
    """Takes the place of a server in generated `add_…_to_server` functions and keeps what they register."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignored: the same methods arrive in `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Keeps the handlers of a service by method name."""
        self.services[service] = handlers


def composed(handler: Any, full_name: str, interceptors: list[Interceptor]) -> Any:
    """A grpc handler that does what `handler` does, inside the interceptors.

    Raises:
        TypeError: the handler is neither an async function nor an async generator function.
    """
    method = Method(full_name, streams=handler.response_streaming)
    call = compose(interceptors, method, _call(handler, full_name))

    # grpc asks `iscoroutinefunction` of what it calls; an interceptor may be any callable that returns an awaitable.
    async def behaviour(request: Any, context: Any) -> Any:
        return await call(request, context)

    if handler.request_streaming:
        decode = _checked(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(behaviour, decode, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(behaviour, decode, None)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(behaviour, None, handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(behaviour, None, None)


def _call(handler: Any, full_name: str) -> Call:
    function = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    inner = _streaming(function) if handler.response_streaming else _encoding(function, handler.response_serializer)
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        inner = _unimplemented(function, full_name)
    return inner if handler.request_streaming else _decoding(inner, _checked(handler.request_deserializer))


def _decoding(call: Call, decode: Callable[[bytes], Any]) -> Call:
    async def decoded(request: bytes, context: Any) -> Any:
        return await call(decode(request), context)

    return decoded


def _encoding(function: Any, encode: Callable[[Any], bytes]) -> Call:
    async def encoded(request: Any, context: Any) -> bytes:
        return encode(await function(request, context))

    return encoded


def _streaming(function: Any) -> Call:
    if not inspect.isasyncgenfunction(function):
        return function  # type: ignore[no-any-return]

    async def streamed(request: Any, context: Any) -> None:
        # Closed at once when the caller leaves: the handler's `finally` must not wait for the garbage collector.
        async with aclosing(function(request, context)) as answers:
            async for answer in answers:
                await context.write(answer)

    return streamed


def _unimplemented(function: Any, full_name: str) -> Call:
    if not getattr(function, "__module__", "").endswith("_pb2_grpc"):
        raise TypeError(f"the handler of {full_name} must be `async def`")

    async def refused(_request: Any, _context: Any) -> Any:
        raise UnimplementedError("UNIMPLEMENTED", f"{full_name} is not implemented by this service")

    return refused


def _checked(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """`decode` with a damaged message, or text that is not UTF-8, as the caller's fault."""
    parse: Callable[[bytes], Any] = decode or bytes

    def decoded(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            text = "the request is not a valid message of this method; texts must be UTF-8"
            raise InvalidArgumentError("MALFORMED_MESSAGE", text) from None

    return decoded


class UnknownMethods(grpc.GenericRpcHandler):
    """Answers methods that no service has, under one name, so that they are counted and cannot name a metric."""

    def __init__(self, interceptors: list[Interceptor]) -> None:
        call = compose(interceptors, UNKNOWN_METHOD, _refuse_unknown)

        async def behaviour(request: Any, context: Any) -> Any:
            return await call(request, context)

        # A stream to a stream accepts the messages of every kind.
        self._handler: Any = grpc.stream_stream_rpc_method_handler(behaviour)

    def service(self, handler_call_details: Any) -> Any:  # noqa: ARG002  # the name is grpc's
        """The same handler for everything."""
        return self._handler


async def _refuse_unknown(_request: Any, _context: Any) -> Any:
    raise UnimplementedError("UNIMPLEMENTED", "this server has no such method")
