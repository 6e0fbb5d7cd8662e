"""Channels to other processes: one per peer, every unary call with a deadline, errors as `CallError`.

`connect` returns a `grpc.aio.Channel` for generated stubs. What its calls raise is a typed `CallError`, never a
`grpc.RpcError`, so that a servicer can let a peer's NOT_FOUND pass and domain code need not know grpc:

    storage = StorageServiceStub(connect("127.0.0.1:9101", tls, peer="storage"))
    answer = await storage.GetEvaluation(request)       # at most default_deadline
    async for event in storage.TailLog(request): ...    # a stream has no deadline unless `timeout=` is given

No grpc client interceptors: in grpc.aio they cost a task per call and are unreliable for streams.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Generator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from crucible_rpc import request_id, status, tls

DEFAULT_DEADLINE = timedelta(seconds=10)
DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
STATUS_GRACE_S = 1.0
"""How long the status of a call whose message could not be sent may still arrive; seconds."""

ONCE = (
    {"service": "crucible.gateway.v1.AdminService", "method": "CreateApiKey"},
    {"service": "crucible.gateway.v1.AdminService", "method": "CreateTenant"},
    {"service": "crucible.gateway.v1.PlatformService", "method": "RunSelfTest"},
    {"service": "crucible.gateway.v1.PlatformService", "method": "VerifyIsolation"},
    {"service": "crucible.storage.v1.TenantService", "method": "CreateTenant"},
    {"service": "crucible.storage.v1.InspectionStoreService", "method": "RunInspection"},
    {"service": "crucible.executor.v1.InspectionService", "method": "RunInspection"},
)
"""Methods that are not retried: called once more they do their work once more, or answer otherwise than the first time.
That a server's first headers end retries is not enough: grpc looks at them only after a status that came with them."""

_RETRIES = {
    "methodConfig": [
        {"name": ONCE},
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
    ]
}
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def connect(
    target: str,
    credentials: tls.ClientTls,
    peer: str,
    default_deadline: timedelta = DEFAULT_DEADLINE,
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> grpc.aio.Channel:
    """A channel to another process of this installation, over mutual TLS; make one per peer and keep it.

    UNAVAILABLE alone is retried, 5 attempts in about two seconds, but for the methods of `ONCE`: what else changes
    state must be idempotent. A peer that was restarted is found again within about a second.

    Args:
        target: `host:port`.
        credentials: this process's certificate and the authority.
        peer: the process that must answer: its certificate needs this DNS name.
        default_deadline: of unary answers whose call gives no `timeout`.
        max_message_bytes: the largest answer accepted.

    Raises:
        TlsError: a file of `credentials` is not usable.
    """
    options = [
        *_options(max_message_bytes),
        ("grpc.ssl_target_name_override", peer),
        ("grpc.default_authority", peer),
        ("grpc.enable_http_proxy", 0),  # a proxy of the environment must never see internal calls
    ]
    return _Channel(grpc.aio.secure_channel(target, credentials.credentials(), options), peer, default_deadline)


def connect_public(
    address: str,
    ca_file: Path | None = None,
    *,
    metadata: tuple[tuple[str, str], ...] = (),
    default_deadline: timedelta = DEFAULT_DEADLINE,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> grpc.aio.Channel:
    """A channel to a public server, without a client certificate; the host name of `address` is checked.

    Args:
        address: `host:port`.
        ca_file: the authority to trust, as PEM; None: the roots that come with gRPC.
        metadata: sent with every call, as `(("authorization", "Bearer …"),)`.
        default_deadline: of unary answers whose call gives no `timeout`.
        max_message_bytes: the largest answer accepted.

    Raises:
        TlsError: `ca_file` is not usable.
    """
    options = _options(max_message_bytes)
    if address.rpartition(":")[0] in _LOOPBACK:
        options.append(("grpc.enable_http_proxy", 0))
    channel = grpc.aio.secure_channel(address, tls.public_credentials(ca_file), options)
    return _Channel(channel, address, default_deadline, metadata)


class calling:  # noqa: N801  # reads as a verb: `async with calling("storage"):`
    """Inside the block a `grpc.RpcError` becomes the `CallError` that it stands for.

    Calls of a `connect` channel do this by themselves; this is for channels made elsewhere. Works with `with` too.

    Args:
        peer: who is called, for the message when it cannot be reached.
    """

    __slots__ = ("_peer",)

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, grpc.RpcError):
            raise status.from_rpc_error(error, self._peer) from error

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


def _options(max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", json.dumps(_RETRIES)),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # With its jitter shorter than the pauses of `_RETRIES` together: a call finds a peer that has just come back.
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", 1_000),  # also the least time that one attempt to connect is given
        ("grpc.use_local_subchannel_pool", 1),  # no other channel's backoff delays this one
    ]


class _Channel(grpc.aio.Channel):
    """A channel whose calls have deadlines and request ids and raise `CallError`."""

    def __init__(
        self,
        inner: grpc.aio.Channel,
        peer: str,
        default_deadline: timedelta,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._inner = inner
        self._peer = peer
        self._deadline = default_deadline.total_seconds()
        self._metadata = metadata

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._inner.unary_unary(*args, **kwargs), self._peer, self._deadline, self._metadata)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._inner.unary_stream(*args, **kwargs), self._peer, None, self._metadata)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner.stream_unary(*args, **kwargs)
        return _Method(inner, self._peer, None, self._metadata, sends_stream=True)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner.stream_stream(*args, **kwargs)
        return _Method(inner, self._peer, None, self._metadata, sends_stream=True)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


class _Method:
    """A callable of a stub."""

    __slots__ = ("_deadline", "_inner", "_metadata", "_peer", "_sends_stream")

    def __init__(
        self,
        inner: Any,
        peer: str,
        deadline: float | None,
        metadata: tuple[tuple[str, str], ...],
        *,
        sends_stream: bool = False,
    ) -> None:
        self._inner = inner
        self._sends_stream = sends_stream
        self._peer = peer
        self._deadline = deadline
        self._metadata = metadata

    def __call__(self, *args: Any, timeout: float | None = None, metadata: Any = None, **kwargs: Any) -> "_Call":
        current = request_id.current()
        own = self._metadata + (((request_id.HEADER, current),) if current else ())
        if metadata:
            own += tuple(metadata)
        inner = self._inner(
            *args, timeout=self._deadline if timeout is None else timeout, metadata=own or None, **kwargs
        )
        if self._sends_stream:
            inner._cython_call = _KeepsStatus(inner._cython_call)  # before the call's own tasks run
        return _Call(inner, self._peer)


class _Call:
    """A grpc call of any kind whose awaits and reads raise `CallError`; everything else is the call's own."""

    __slots__ = ("_calling", "_inner")

    def __init__(self, inner: Any, peer: str) -> None:
        self._inner = inner
        self._calling = calling(peer)

    def __await__(self) -> Generator[Any, None, Any]:
        with self._calling:
            return (yield from self._inner.__await__())

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            with self._calling:
                async for message in self._inner:
                    yield message
        finally:
            # A reader that stops early wants no more: without this the peer would go on sending.
            self._inner.cancel()

    async def read(self) -> Any:
        with self._calling:
            return await self._inner.read()

    async def write(self, request: Any) -> None:
        """Sends a message.

        Raises:
            CallError: the call has failed.
            asyncio.InvalidStateError: the call has ended well or was cancelled here, or `done_writing` was called.
        """
        with self._calling:
            if self._inner.done() and not self._inner._cython_call.is_locally_cancelled():
                await self._inner.wait_for_connection()  # raises the error of a call that ended with one
            await self._inner.write(request)

    async def done_writing(self) -> None:
        with self._calling:
            await self._inner.done_writing()

    async def wait_for_connection(self) -> None:
        with self._calling:
            await self._inner.wait_for_connection()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _KeepsStatus:
    """The core of a call that sends a stream: a message that cannot be sent does not hide why.

    When a server ends a call while messages are still sent to it, as it does when it refuses one, grpc.aio replaces
    the status that the server gave by INTERNAL (https://github.com/grpc/grpc/issues/36066). Here what the server says
    stays, and is waited for; INTERNAL is the status of a call for which none arrives in `STATUS_GRACE_S`, of which its
    writers are told then (who reads waits on, as without this).
    """

    def __init__(self, core: Any) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def set_internal_error(self, error: str) -> None:
        """A message could not be sent."""
        asyncio.get_running_loop().call_later(STATUS_GRACE_S, self._give_up, error)

    def _give_up(self, error: str) -> None:
        if not self._core.done():
            self._core.set_internal_error(error)
