"""A service of all four kinds without generated code: `/test.Echo/*` over StringValue, for real in-process servers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from crucible_rpc import pki
from crucible_rpc.tls import ClientTls, ServerTls

SERVICE = "test.Echo"
METHODS = ("Unary", "Down", "Up", "Both", "Silent")


def full(method: str) -> str:
    return f"/{SERVICE}/{method}"


@dataclass
class EchoServicer:
    """Answers what it is asked, after doing `act(context, text)`."""

    act: Callable[[Any, str], Awaitable[None]] | None = None
    calls: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def called(self, times):
        """Returns when it has been called so often."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.calls) >= times)

    async def _do(self, context, text):
        self.calls.append(text)
        async with self.changed:
            self.changed.notify_all()
        if self.act:
            await self.act(context, text)

    async def Unary(self, request, context):
        await self._do(context, request.value)
        return StringValue(value=request.value)

    async def Down(self, request, context):
        yield StringValue(value="first")
        await self._do(context, request.value)
        yield StringValue(value=request.value)

    async def Up(self, request_iterator, context):
        values = [request.value async for request in request_iterator]
        await self._do(context, ",".join(values))
        return StringValue(value=",".join(values))

    async def Both(self, request_iterator, context):
        async for request in request_iterator:
            await self._do(context, request.value)
            yield StringValue(value=request.value)


class _Unfinished_pb2_grpc:  # noqa: N801
    def silent(self, request, context): ...


_Unfinished_pb2_grpc.silent.__module__ = "echo_pb2_grpc"


def add_echo(servicer, server) -> None:
    coding = {"request_deserializer": StringValue.FromString, "response_serializer": StringValue.SerializeToString}
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(servicer.Unary, **coding),
        "Down": grpc.unary_stream_rpc_method_handler(servicer.Down, **coding),
        "Up": grpc.stream_unary_rpc_method_handler(servicer.Up, **coding),
        "Both": grpc.stream_stream_rpc_method_handler(servicer.Both, **coding),
        "Silent": grpc.unary_unary_rpc_method_handler(_Unfinished_pb2_grpc().silent, **coding),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class EchoStub:
    """What a generated stub would be."""

    def __init__(self, channel) -> None:
        coding = {"request_serializer": StringValue.SerializeToString, "response_deserializer": StringValue.FromString}
        self.unary = channel.unary_unary(full("Unary"), **coding)
        self.down = channel.unary_stream(full("Down"), **coding)
        self.up = channel.stream_unary(full("Up"), **coding)
        self.both = channel.stream_stream(full("Both"), **coding)
        self.silent = channel.unary_unary(full("Silent"), **coding)
        self.missing = channel.unary_unary(full("Missing"), **coding)
        self.raw = channel.unary_unary(full("Unary"))
        self.raw_up = channel.stream_unary(full("Up"))


def say(value: str) -> StringValue:
    return StringValue(value=value)


async def sayings(*values: str) -> AsyncIterator[StringValue]:
    for value in values:
        yield say(value)


async def call_each_kind(stub: EchoStub, text: str) -> dict[str, Any]:
    """Calls all four kinds with `text`; the answers, or what each raised, by kind."""

    async def listed(stream):
        return [message.value async for message in stream]

    async def one(call):
        return [(await call).value]

    answers: dict[str, Any] = {}
    for kind, call in {
        "unary-unary": lambda: one(stub.unary(say(text))),
        "unary-stream": lambda: listed(stub.down(say(text))),
        "stream-unary": lambda: one(stub.up(sayings(text))),
        "stream-stream": lambda: listed(stub.both(sayings(text))),
    }.items():
        try:
            answers[kind] = await call()
        except Exception as error:
            answers[kind] = error
    return answers


class Keys:
    """An authority in a folder and the certificates that it issues."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.authority = pki.make_ca()
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self.authority.cert_pem)

    def _issue(self, process: str, **names: Any) -> tuple[Path, Path]:
        cert, key = self.folder / f"{process}.crt", self.folder / f"{process}.key"
        if not cert.exists():
            issued = pki.issue(self.authority, process, **names)
            cert.write_bytes(issued.cert_pem)
            key.write_bytes(issued.key_pem)
        return cert, key

    def server(self, process: str) -> ServerTls:
        return ServerTls(*self._issue(process), client_ca=self.ca)

    def public_server(self, process: str) -> ServerTls:
        return ServerTls(*self._issue(process, dns=["localhost"], ips=["127.0.0.1"]), client_ca=None)

    def client(self, process: str) -> ClientTls:
        return ClientTls(*self._issue(process), ca=self.ca)


async def within(awaitable: Awaitable[Any], seconds: float = 5.0) -> Any:
    """The awaitable's result, or a failure after `seconds`."""
    return await asyncio.wait_for(awaitable, seconds)
