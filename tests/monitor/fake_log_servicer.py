"""Storage's event log in memory, served by a real server over mutual TLS, and the certificates for all of it."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

from prometheus_client import CollectorRegistry

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import event_pb2
from crucible.storage.v1 import event_log_service_pb2 as log_api
from crucible.storage.v1 import event_log_service_pb2_grpc
from crucible_rpc import pki
from crucible_rpc.errors import NotFoundError
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ClientTls, ServerTls

SERVICE = "/crucible.storage.v1.EventLogService"


class Keys:
    """The certificates of one installation, as files."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = pki.make_ca()
        (folder / "ca.crt").write_bytes(self.authority.cert_pem)

    def files(self, process):
        cert, key = self.folder / f"{process}.crt", self.folder / f"{process}.key"
        if not cert.exists():
            made = pki.issue(self.authority, process, dns=["localhost"], ips=["127.0.0.1"])
            cert.write_bytes(made.cert_pem)
            key.write_bytes(made.key_pem)
        return cert, key, self.folder / "ca.crt"

    def server(self, process):
        return ServerTls(*self.files(process))

    def client(self, process):
        return ClientTls(*self.files(process))


def name(number):
    return f"evaluations/00000000-0000-4000-8000-{number:012d}"


class FakeEventLog(event_log_service_pb2_grpc.EventLogServiceServicer):
    """Append-only, gap-free. `hidden` positions are left out of what is sent, as a broken storage would."""

    def __init__(self):
        self.events = []
        self.hidden = set()
        self.hide_once = False
        self.stale = 0
        self.tails = 0
        self.reads = 0
        self._changed = asyncio.Event()

    def append(self, evaluation, tenant="acme", **kind):
        event = event_pb2.Event(position=len(self.events) + 1, evaluation=evaluation, tenant=tenant, attempt=1, **kind)
        event.time.GetCurrentTime()
        self.events.append(event)
        self._changed.set()
        self._changed = asyncio.Event()
        return event.position

    def output(self, evaluation, data=b"x", **more):
        return self.append(evaluation, output=event_pb2.OutputChunk(stream=1, data=data), **more)

    def state(self, evaluation, state, termination=None, **more):
        return self.append(
            evaluation, state_changed=event_pb2.StateChanged(state=state, termination=termination), **more
        )

    def end(self, evaluation, **more):
        exited = ev.Termination(exited=ev.Exited(code=0))
        return self.state(evaluation, ev.EVALUATION_STATE_SUCCEEDED, exited, **more)

    async def TailEvents(self, request, context):
        self.tails += 1
        after = len(self.events) if request.after_position < 0 else request.after_position
        yield log_api.TailEventsResponse(last_position=len(self.events))
        while True:
            changed = self._changed
            batch = [event for event in self.events[after : after + 256] if event.position not in self.hidden]
            after = min(after + 256, len(self.events))
            if batch:
                if self.hide_once and self.hidden:
                    self.hidden = set()
                yield log_api.TailEventsResponse(events=batch, last_position=after)
            else:
                await changed.wait()

    async def ReadEvents(self, request, context):
        self.reads += 1
        last = len(self.events)
        own = [event for event in self.events[:last] if event.evaluation == request.evaluation]
        if not own or own[0].tenant != request.tenant:
            raise NotFoundError("EVALUATION_NOT_FOUND", f"there is no evaluation {request.evaluation}")
        wanted = [event for event in own if event.position > request.after_position]
        for start in range(0, len(wanted), 7):  # small batches: appends get in between
            batch = wanted[start : start + 7]
            yield log_api.ReadEventsResponse(events=batch, last_position=batch[-1].position)
            await asyncio.sleep(0)
        yield log_api.ReadEventsResponse(last_position=last - self.stale)


class FakeStorage:
    """A server for a log that can go away and come back at the same address."""

    def __init__(self, keys, log):
        self.keys = keys
        self.log = log
        self.port = 0
        self.registry = CollectorRegistry()
        self._server = None

    def in_flight(self, method):
        return self.registry.get_sample_value("crucible_rpc_in_flight", {"method": f"{SERVICE}/{method}"})

    async def start(self):
        permissions = {f"{SERVICE}/{method}": frozenset({"monitor"}) for method in ("TailEvents", "ReadEvents")}
        self._server = Server(
            "storage",
            f"127.0.0.1:{self.port}",
            self.keys.server("storage"),
            authentication=PeerPermissions(permissions),
            registry=self.registry,
        )
        self._server.add(event_log_service_pb2_grpc.add_EventLogServiceServicer_to_server, self.log)
        self.port = await self._server.start()

    async def stop(self):
        await self._server.drain(timedelta(0))


@asynccontextmanager
async def fake_storage(keys, log):
    storage = FakeStorage(keys, log)
    await storage.start()
    try:
        yield storage
    finally:
        await storage.stop()


async def until(condition, seconds=10):
    """Waits until something that has no event of its own is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
