"""Inspections between a storage and an executor that are real servers: carried, stopped, lost, and let go."""

# ruff: noqa: N802  # RPC names are the contract's
from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import inspection_service_pb2 as ex
from crucible.executor.v1 import inspection_service_pb2_grpc as ex_grpc
from crucible.executor.v1.executor_service_pb2 import ExecutorTime
from crucible.storage.v1 import inspection_service_pb2 as pb
from crucible.storage.v1 import inspection_service_pb2_grpc as st_grpc
from crucible_rpc.channel import connect
from crucible_rpc.errors import FailedPreconditionError, PermissionDeniedError, UnavailableError
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ServerTls
from crucible_worker import inspector as domain
from crucible_worker.grpc_inspections import GrpcInspectionExecutor, GrpcInspectionStorage
from crucible_worker.inspector import Inspector

WORKER = frozenset({"worker"})
PERMISSIONS = {
    "storage": {
        "/crucible.storage.v1.InspectionWorkService/LeaseInspections": WORKER,
        "/crucible.storage.v1.InspectionWorkService/ReportInspection": WORKER,
    },
    "executor": {"/crucible.executor.v1.InspectionService/RunInspection": WORKER},
}


class Storage(st_grpc.InspectionWorkServiceServicer):
    """Gives one inspection, and keeps what is reported; `stop` is what it answers."""

    def __init__(self) -> None:
        self.given = False
        self.events: list[bytes] = []
        self.reports = 0
        self.outcome: pb.InspectionLost | pb.InspectionRefused | None = None
        self.stop = False
        self.down = False
        self.changed = asyncio.Condition()

    async def LeaseInspections(self, request, context):
        if self.down or (request.executor_id, request.since.boot_id) != ("x-1", "b-1"):
            raise UnavailableError("PEER_UNAVAILABLE", "storage is away")
        if self.given:
            await asyncio.sleep(request.wait.ToTimedelta().total_seconds())
            return pb.LeaseInspectionsResponse()
        self.given = True
        ticket = SignedBytes(payload=b"leave")
        return pb.LeaseInspectionsResponse(assignments=[pb.InspectionAssignment(inspection_id="i-1", ticket=ticket)])

    async def ReportInspection(self, request, context):
        if self.down:
            raise UnavailableError("PEER_UNAVAILABLE", "storage is away")
        self.reports += 1
        self.events += [one.payload for one in request.events]
        kind = request.WhichOneof("outcome")
        if kind is not None and self.outcome is None and self.events[-1:] != [b"summary"]:  # else it is over already
            self.outcome = getattr(request, kind)
        async with self.changed:
            self.changed.notify_all()
        return pb.ReportInspectionResponse(stop=self.stop or self.events[-1:] == [b"summary"] or kind is not None)

    async def until(self, condition) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(condition)


class Machine(ex_grpc.InspectionServiceServicer):
    """Streams `script`; then waits for `more`, unless that is set."""

    def __init__(self, *script: bytes, refusal=None) -> None:
        self.script = script
        self.refusal = refusal
        self.more = asyncio.Event()
        self.ended = asyncio.Event()
        self.tickets: list[bytes] = []

    async def RunInspection(self, request, context):
        self.tickets.append(request.ticket.payload)
        if self.refusal is not None:
            raise self.refusal
        try:
            for payload in self.script:
                yield ex.RunInspectionResponse(event=SignedBytes(payload=payload, key_id="k", signature=b"s"))
            await self.more.wait()
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(keys, process, adder, servicer):
    own = keys.folder / process
    tls = ServerTls(own / "tls.crt", own / "tls.key", own / "ca.crt")
    server = Server(
        process, "127.0.0.1:0", tls, authentication=PeerPermissions(PERMISSIONS[process]), registry=CollectorRegistry()
    )
    server.add(adder, servicer)
    await server.start()
    try:
        yield server
    finally:
        await server.drain(timedelta(0))


@asynccontextmanager
async def inspecting(keys, storage, machine):
    async def connected() -> tuple[str, ExecutorTime]:
        return "x-1", ExecutorTime(boot_id="b-1")

    async with (
        serving(keys, "storage", st_grpc.add_InspectionWorkServiceServicer_to_server, storage) as first,
        serving(keys, "executor", ex_grpc.add_InspectionServiceServicer_to_server, machine) as second,
        connect(f"127.0.0.1:{first.port}", keys.tls("worker"), "storage") as to_storage,
        connect(f"127.0.0.1:{second.port}", keys.tls("worker"), "executor") as to_executor,
    ):
        made = Inspector(
            GrpcInspectionStorage(to_storage), GrpcInspectionExecutor(to_executor), connected, timedelta(seconds=20)
        )
        async with made:
            yield second


async def test_what_the_executor_signs_is_carried_unchanged_and_in_order(keys):
    storage, machine = Storage(), Machine(b"1", b"2", b"summary")
    machine.more.set()
    async with inspecting(keys, storage, machine):
        await storage.until(lambda: storage.events[-1:] == [b"summary"])
    assert storage.events == [b"1", b"2", b"summary"]
    assert machine.tickets == [b"leave"]
    assert storage.outcome is None


async def test_storage_hears_of_a_worker_whose_executor_says_nothing(keys, monkeypatch):
    monkeypatch.setattr(domain, "HEARTBEAT_SECONDS", 0.05)
    storage = Storage()
    async with inspecting(keys, storage, Machine()):
        await storage.until(lambda: storage.reports >= 3)


async def test_a_stop_ends_the_executors_call(keys, monkeypatch):
    monkeypatch.setattr(domain, "HEARTBEAT_SECONDS", 0.05)
    storage, machine = Storage(), Machine(b"1")
    async with inspecting(keys, storage, machine):
        await storage.until(lambda: storage.events)
        storage.stop = True
        await asyncio.wait_for(machine.ended.wait(), 10)
        assert storage.outcome is None


async def test_a_refusal_is_passed_on_with_its_reason(keys):
    storage = Storage()
    machine = Machine(refusal=FailedPreconditionError("CANNOT_VERIFY", "there is no such kernel"))
    async with inspecting(keys, storage, machine):
        await storage.until(lambda: storage.outcome)
    assert storage.outcome == pb.InspectionRefused(reason="CANNOT_VERIFY", message="there is no such kernel")


async def test_an_executor_that_dies_or_ends_too_early_loses_it(keys):
    for end in ("dies", "ends early"):
        storage, machine = Storage(), Machine(b"1")
        async with inspecting(keys, storage, machine) as server:
            await storage.until(lambda: storage.events)  # noqa: B023
            if end == "dies":
                await server.drain(timedelta(0))
            else:
                machine.more.set()
            await storage.until(lambda: storage.outcome)  # noqa: B023
        assert isinstance(storage.outcome, pb.InspectionLost), end
        assert "its executor" in storage.outcome.reason
        assert storage.events == [b"1"]


async def test_a_worker_that_stops_says_so_and_leaves_nothing_running(keys):
    storage, machine = Storage(), Machine(b"1")
    async with inspecting(keys, storage, machine):
        await storage.until(lambda: storage.events)
    assert storage.outcome == pb.InspectionLost(reason="its worker stopped")
    await asyncio.wait_for(machine.ended.wait(), 10)


async def test_a_storage_that_stays_away_ends_it(keys, monkeypatch):
    monkeypatch.setattr(domain, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(domain, "SILENCE_SECONDS", 0.5)
    storage, machine = Storage(), Machine(b"1")
    async with inspecting(keys, storage, machine):
        await storage.until(lambda: storage.events)
        storage.down = True
        await asyncio.wait_for(machine.ended.wait(), 30)


@pytest.mark.parametrize("process", ["gateway", "storage"])
async def test_nobody_else_is_given_work(keys, process):
    storage = Storage()
    async with (
        serving(keys, "storage", st_grpc.add_InspectionWorkServiceServicer_to_server, storage) as server,
        connect(f"127.0.0.1:{server.port}", keys.tls(process), "storage") as channel,
    ):
        with pytest.raises(PermissionDeniedError):
            await GrpcInspectionStorage(channel).lease("x-1", ExecutorTime(boot_id="b-1"), timedelta(0))
    assert not storage.given
