import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from crucible.monitor.v1 import monitor_service_pb2 as api
from crucible.monitor.v1 import monitor_service_pb2_grpc
from crucible_monitor.__main__ import build
from crucible_monitor.event_log import StorageEventLog
from crucible_monitor.settings import Settings
from crucible_rpc.channel import connect
from tests.monitor.fake_log_servicer import FakeEventLog, Keys, fake_storage, until


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("monitor-keys"))


@pytest.fixture
async def resources():
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def log():
    return FakeEventLog()


@pytest.fixture
async def storage(keys, log, resources):
    return await resources.enter_async_context(fake_storage(keys, log))


class RunningMonitor:
    def __init__(self, server, tail, following, registry):
        self.server = server
        self.tail = tail
        self.following = following
        self.registry = registry

    def metric(self, name, **labels):
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def start_monitor(keys, storage, resources):
    async def start(connected=True, **options):
        cert, key, ca = keys.files("monitor")
        own = Settings(cert, key, ca, listen="127.0.0.1:0", storage=f"127.0.0.1:{storage.port}", **options)
        registry = CollectorRegistry()
        channel = connect(own.storage, keys.client("monitor"), "storage")
        resources.push_async_callback(channel.close)
        server, tail = build(own, StorageEventLog(channel), registry)
        await server.start()
        resources.push_async_callback(server.drain, timedelta(0))
        following = asyncio.ensure_future(tail.run())

        async def end():
            following.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await following

        resources.push_async_callback(end)
        if connected:
            await until(lambda: tail.connected)
        return RunningMonitor(server, tail, following, registry)

    return start


@pytest.fixture
async def monitor(start_monitor):
    return await start_monitor()


@pytest.fixture
def dial(keys, resources):
    """A stub of the monitor for a process."""

    def connected(monitor, process="gateway"):
        channel = connect(f"127.0.0.1:{monitor.server.port}", keys.client(process), "monitor")
        resources.push_async_callback(channel.close)
        return monitor_service_pb2_grpc.MonitorServiceStub(channel)

    return connected


@pytest.fixture
def watch(dial):
    def call(monitor, evaluation, after=0, tenant="acme", process="gateway"):
        request = api.WatchRequest(tenant=tenant, evaluation=evaluation, after_position=after)
        return aiter(dial(monitor, process).Watch(request))

    return call
