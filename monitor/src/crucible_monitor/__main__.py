"""The monitor process: puts its parts together and serves until it is told to stop."""

from crucible_rpc import process, settings  # isort: skip  # before grpc: turns off its fork handlers

import asyncio
from contextlib import AsyncExitStack

import uvloop
from prometheus_client import REGISTRY, CollectorRegistry

from crucible.monitor.v1 import monitor_service_pb2_grpc
from crucible_monitor.event_log import StorageEventLog
from crucible_monitor.fanout import Bounds, Fanout
from crucible_monitor.metrics import MonitorMetrics
from crucible_monitor.monitor_servicer import MonitorServicer
from crucible_monitor.settings import Settings
from crucible_monitor.tail import Tail
from crucible_monitor.watches import Watches
from crucible_rpc.admin import AdminServer
from crucible_rpc.channel import connect
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ClientTls, ServerTls

PROCESS = "monitor"
PERMISSIONS = {"/crucible.monitor.v1.MonitorService/Watch": frozenset({"gateway"})}


async def main() -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        SettingsError: a setting is missing or malformed.
        StartError: a certificate is not usable or an address is taken.
        LogDamagedError: the log cannot be followed any more.
    """
    own = settings.load(Settings, "CRUCIBLE_MONITOR_")
    async with AsyncExitStack() as stack:
        credentials = ClientTls(own.tls_cert, own.tls_key, own.tls_ca)
        log = StorageEventLog(await stack.enter_async_context(connect(own.storage, credentials, "storage")))
        server, tail = build(own, log)
        ready = AdminServer(own.admin, ready=lambda: server.serving and tail.connected)
        await server.start()
        await stack.enter_async_context(ready)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(tail.run())
            await server.run()
            following.cancel()


def build(own: Settings, log: StorageEventLog, registry: CollectorRegistry = REGISTRY) -> tuple[Server, Tail]:
    """The server, not started, and the tail that feeds it, not running."""
    metrics = MonitorMetrics(registry)
    bounds = Bounds(own.max_watchers, own.watcher_events, own.watcher_bytes, own.total_bytes)
    fanout = Fanout(bounds, metrics.fell_behind.inc)
    tail = Tail(log, fanout.publish, metrics.observe)
    metrics.watchers.set_function(lambda: fanout.watchers)
    metrics.connected.set_function(lambda: tail.connected)
    server = Server(
        PROCESS,
        own.listen,
        ServerTls(own.tls_cert, own.tls_key, own.tls_ca),
        authentication=PeerPermissions(PERMISSIONS),
        # Above the bound on watchers, so that it is that one which answers, with its reason.
        max_concurrent_calls=own.max_watchers + 256,
        grace=own.grace,
        registry=registry,
    )
    server.add(
        monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server,
        MonitorServicer(Watches(log, fanout, tail), own.watcher_patience),
    )
    server.on_drain(fanout.close)
    return server, tail


if __name__ == "__main__":
    process.run(main, PROCESS, loop_factory=uvloop.new_event_loop)
