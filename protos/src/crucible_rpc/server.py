"""A gRPC server as every Crucible service runs it: TLS, interceptors, health, reflection, and an orderly end."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # type: ignore[import-untyped]
from prometheus_client import REGISTRY, CollectorRegistry

from crucible_rpc import interceptors as around
from crucible_rpc import listen as addresses
from crucible_rpc import logs, signals
from crucible_rpc.drain import Drain
from crucible_rpc.errors import StartError
from crucible_rpc.handlers import HandlerTable, UnknownMethods, composed
from crucible_rpc.tls import ServerTls

DEFAULT_MAX_MESSAGE_BYTES = 16 << 20
REFLECTION_SERVICE: str = reflection.SERVICE_NAME

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 0.5  # for statuses of cut calls and health watchers to get out


class Server:
    """One listening gRPC server.

        server = Server("storage", settings.listen, tls, authentication=PeerPermissions(TABLE))
        server.add(add_StorageServiceServicer_to_server, servicer)
        await server.run()

    Args:
        process: the name of the process, for logs and errors.
        listen: `host:port`; port 0 takes a free one (see `port`).
        tls: the server's certificate and whom it trusts.
        authentication: the interceptor that admits calls, as `PeerPermissions`; it must let health through.
        max_message_bytes: the largest request accepted (RESOURCE_EXHAUSTED beyond, with the limit in the text).
        max_concurrent_calls: RESOURCE_EXHAUSTED beyond.
        grace: how long `drain` waits for calls in flight.
        registry: where the metrics go.
        call_log_level: the log level of calls that went well (`logging.INFO`).
    """

    def __init__(
        self,
        process: str,
        listen: str,
        tls: ServerTls,
        *,
        authentication: around.Interceptor,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_concurrent_calls: int = 4096,
        grace: timedelta = timedelta(seconds=10),
        registry: CollectorRegistry = REGISTRY,
        call_log_level: int = logging.INFO,
    ) -> None:
        self.process = process
        self.port = 0
        self._listen = listen
        self._tls = tls
        self._grace = grace
        self._drain = Drain(process)
        self._authentication = authentication
        self._interceptors: list[around.Interceptor] = [
            around.RequestIds(),
            around.RpcMetrics.of(registry),
            around.Errors(),
            self._drain,
            authentication,
            around.CallLog(call_log_level),
        ]
        self._options = _options(max_message_bytes)
        self._max_concurrent_calls = max_concurrent_calls
        self._services: list[str] = []
        self._methods: set[str] = set()
        self._handlers: list[Any] = []
        self._health = health.aio.HealthServicer()
        self._reflected = False
        self._on_drain: list[Callable[[], None]] = []
        self._server: grpc.aio.Server | None = None
        self._not_serving = ""
        self._drained: asyncio.Task[None] | None = None

    @property
    def draining(self) -> asyncio.Event:
        """Set when the server begins to drain: long polls and streams should then come to their end."""
        return self._drain.draining

    @property
    def serving(self) -> bool:
        """Whether the server answers calls and its process can do its work: for `/readyz`."""
        return self._server is not None and not self._not_serving and not self.draining.is_set()

    @property
    def not_serving(self) -> str:
        """Why the process cannot do its work, as `set_serving` was told; empty when it can."""
        return self._not_serving

    async def set_serving(self, why_not: str) -> None:
        """Says by health and `serving` whether the process can do its work; calls are answered either way.

        Args:
            why_not: why it cannot; empty when it can.
        """
        self._not_serving = why_not
        if self._server is not None:
            await self._say_health()

    def add(self, adder: Callable[[Any, Any], None], servicer: object) -> None:
        """Adds a service: `add_…Servicer_to_server` as generated, and its servicer with async methods.

        Raises:
            TypeError: a method of the servicer is not async.
        """
        self._services += self._register(adder, servicer)

    def reflect(self) -> None:
        """Adds the reflection service over all services, also those added later; its permission is as any other's."""
        self._reflected = True

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, in the event loop, when the server begins to drain."""
        self._on_drain.append(callback)

    async def start(self) -> int:
        """Starts to serve and returns the port.

        Raises:
            StartError: a certificate is not usable, or the address is taken or not this machine's.
            ValueError: the permissions name a method that no service has.
        """
        self._add_standard_services()
        self._check_permissions()
        admits = self._authentication  # is not asked for methods that do not exist
        host, port = addresses.parsed(self._listen, self.process)
        server = grpc.aio.server(
            handlers=[*self._handlers, UnknownMethods([one for one in self._interceptors if one is not admits])],
            options=self._options,
            maximum_concurrent_rpcs=self._max_concurrent_calls,
        )
        try:
            self.port = server.add_secure_port(self._listen, self._tls.credentials())
        except RuntimeError:
            why = addresses.why_not(host, port)
            raise StartError(f"{self.process} cannot listen on {self._listen}: {why}") from None
        await self._say_health()
        await server.start()
        self._server = server
        _log.info("serving", extra=logs.fields(listen=self._listen, port=self.port))
        return self.port

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Serves until `stop` is set (by default: SIGTERM or SIGINT), drains, and returns.

        A second signal cuts the grace short.
        """
        if self._server is None:
            await self.start()
        if stop is not None:
            await stop.wait()
            await self.drain()
            return
        caught = signals.caught()
        await caught.wait()
        caught.clear()
        draining = asyncio.ensure_future(self.drain())
        second = asyncio.ensure_future(caught.wait())
        await asyncio.wait((draining, second), return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            self._drain.cut()
        second.cancel()
        await draining

    async def drain(self, grace: timedelta | None = None) -> None:
        """Turns health to NOT_SERVING, refuses new calls, waits for those in flight, and stops.

        Args:
            grace: how long to wait (default: the server's); what is left is then ended with UNAVAILABLE.
        """
        if self._drained is None:
            self._drained = asyncio.ensure_future(self._stop(self._grace if grace is None else grace))
        await asyncio.shield(self._drained)

    async def _stop(self, grace: timedelta) -> None:
        _log.info("draining", extra=logs.fields(in_flight=self._drain.in_flight))
        await self._health.enter_graceful_shutdown()
        self._drain.begin()
        for callback in self._on_drain:
            try:
                callback()
            except Exception:
                _log.exception("a callback of the drain failed")
        await self._drain.wait(grace)
        if self._server is not None:
            await self._server.stop(_FLUSH_SECONDS)
        _log.info("stopped")

    async def _say_health(self) -> None:
        states = health_pb2.HealthCheckResponse
        for service in ("", *self._services):
            await self._health.set(service, states.NOT_SERVING if self._not_serving else states.SERVING)

    def _register(self, adder: Callable[[Any, Any], None], servicer: object) -> Sequence[str]:
        table = HandlerTable()
        adder(servicer, table)
        for service, handlers in table.services.items():
            methods = {}
            for name, handler in handlers.items():
                full_name = f"/{service}/{name}"
                methods[name] = composed(handler, full_name, self._interceptors)
                self._methods.add(full_name)
            self._handlers.append(grpc.method_handlers_generic_handler(service, methods))
        return list(table.services)

    def _add_standard_services(self) -> None:
        shown = [*self._services, health.SERVICE_NAME]
        self._register(health_pb2_grpc.add_HealthServicer_to_server, self._health)
        if self._reflected:
            servicer = reflection.aio.ReflectionServicer([*shown, reflection.SERVICE_NAME])
            self._register(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer)

    def _check_permissions(self) -> None:
        """A misspelt entry would silently lock everybody out of the method that it means."""
        if isinstance(self._authentication, around.PeerPermissions):
            stray = sorted(set(self._authentication.permissions) - self._methods)
            if stray:
                raise ValueError(f"the permissions of {self.process} name methods that it does not have: {stray}")


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a second instance must fail, not share the port
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", 1024),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Our clients ping every 10 s, also without calls.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
