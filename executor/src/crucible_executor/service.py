"""One start of the executor: takes over what an earlier one left, then serves until it is told to stop."""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry

from crucible.executor.v1 import executor_service_pb2_grpc, inspection_service_pb2_grpc
from crucible_executor import convert
from crucible_executor.attack_suite import ChildSuite
from crucible_executor.catalog import (
    Catalog,
    ImageDigests,
    OfferedEngine,
    OfferedRuntime,
    check_engines,
    offer_runtimes,
)
from crucible_executor.ceilings import Ceilings
from crucible_executor.engines.base import Engine
from crucible_executor.executor_clock import ExecutorClock
from crucible_executor.executor_servicer import PERMISSIONS, ExecutorServicer
from crucible_executor.inspection_servicer import InspectionServicer
from crucible_executor.inspection_tickets import InspectionTicketCheck
from crucible_executor.inspections import Inspections
from crucible_executor.journal import Journal, JournalFullError
from crucible_executor.metrics import ExecutorMetrics
from crucible_executor.output import OutputFolder
from crucible_executor.readiness import Readiness
from crucible_executor.records import Records
from crucible_executor.room import Room
from crucible_executor.runs import Runs, RunsSettings
from crucible_executor.runtimes import RUNTIMES
from crucible_executor.selftest import machine
from crucible_executor.selftest.parts import Parts
from crucible_executor.settings import Settings
from crucible_executor.statedir import StateDir
from crucible_executor.tickets import TicketCheck
from crucible_rpc import logs
from crucible_rpc.admin import AdminServer
from crucible_rpc.errors import StartError
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.signing import Signer, Verifier
from crucible_rpc.tls import ServerTls

_MAX_KEY_BYTES = 64 << 10
_END_ALLOWANCE = timedelta(seconds=5)
_log = logging.getLogger(__name__)


class ExecutorService:
    """A started executor; made by `start`.

    Attributes:
        executor_id: stays over restarts.
        boot_id: this start's.
        clock: its time.
        runs: its runs.
        port: where it listens.
        admin_port: where health and metrics are.
    """

    def __init__(
        self,
        settings: Settings,
        state: StateDir,
        boot_id: str,
        clock: ExecutorClock,
        journal: Journal,
        runs: Runs,
        server: Server,
        engines: Sequence[Engine],
        inspections: Inspections,
        readiness: Readiness,
    ) -> None:
        self.executor_id = state.executor_id
        self.boot_id = boot_id
        self.clock = clock
        self.runs = runs
        self.port = self.admin_port = 0
        self._settings = settings
        self._state = state
        self._journal = journal
        self._server = server
        self._engines = engines
        self._inspections = inspections
        self._readiness = readiness
        self._draining: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        settings: Settings,
        engines: Sequence[Engine],
        images: ImageDigests,
        registry: CollectorRegistry = REGISTRY,
        uptime: Callable[[], float] | None = None,
    ) -> ExecutorService:
        """Takes over the state folder, removes what an earlier start left behind, records it as lost, and listens.

        `uptime` is the clock that permits and tickets end by; see `ExecutorClock`.

        Raises:
            StartError: in one line, what is in the way.
        """
        signer = _signer(settings.records_key)
        verifier = _verifier([Path(file) for file in settings.tickets_pub])
        state = StateDir.open(settings.state_dir)
        boot_id = uuid.uuid4().hex
        journal = Journal.open(state.journal)
        suite = ChildSuite(settings, state.path, state.executor_id)
        await suite.sweep()
        await machine.sweep(settings)
        await _sweep(engines)
        offered = await check_engines(engines)

        def runtimes(with_engines: Iterable[OfferedEngine]) -> list[OfferedRuntime]:
            return offer_runtimes(RUNTIMES, images, with_engines)

        catalog = Catalog(offered, runtimes(offered), settings.default_engine)
        clock = ExecutorClock(boot_id, uptime)
        tickets = TicketCheck(verifier, state.executor_id, boot_id, settings.orphan_grace, clock)
        runs = Runs(
            RunsSettings(settings.slot_count, settings.orphan_grace),
            catalog=catalog,
            ceilings=Ceilings(settings.ceilings),
            tickets=tickets,
            records=Records(signer),
            journal=journal,
            outputs=OutputFolder(state.outputs),
            room=Room(state.outputs, settings.max_kept_bytes, settings.min_free_bytes),
            metrics=ExecutorMetrics(settings.slot_count, registry),
            clock=clock,
        )
        try:
            lost = await runs.recover()
        except JournalFullError as error:
            raise StartError(f"{error}; free some space in {settings.state_dir}") from error
        describe = functools.partial(
            convert.executor,
            catalog,
            executor_id=state.executor_id,
            boot_id=boot_id,
            ceilings=settings.ceilings,
            slots=settings.slot_count,
        )
        inspections = Inspections(
            tickets=InspectionTicketCheck(verifier, state.executor_id, boot_id, settings.orphan_grace, clock),
            catalog=catalog,
            parts=Parts(settings, state, catalog, tickets, signer),
            suite=suite,
            signer=signer,
            executor_id=state.executor_id,
            boot_id=boot_id,
        )
        server = _server(settings, registry)
        servicer = ExecutorServicer(describe, runs, clock)
        server.add(executor_service_pb2_grpc.add_ExecutorServiceServicer_to_server, servicer)
        server.add(inspection_service_pb2_grpc.add_InspectionServiceServicer_to_server, InspectionServicer(inspections))
        readiness = Readiness(catalog, runtimes, server.set_serving)
        service = cls(settings, state, boot_id, clock, journal, runs, server, engines, inspections, readiness)
        server.on_drain(service._begin_draining)
        await readiness.begin()
        service.port = await server.start()
        _log.info("executor started", extra=logs.fields(executor=state.executor_id, boot=boot_id, lost=lost))
        return service

    async def run(self, registry: CollectorRegistry = REGISTRY, stop: asyncio.Event | None = None) -> None:
        """Serves until `stop` (default: SIGTERM or SIGINT), then ends what runs; the journal keeps the records."""
        admin = AdminServer(
            self._settings.admin_listen,
            ready=lambda: self._server.serving,
            why_not=lambda: self._server.not_serving,
            registry=registry,
        )
        async with admin:
            self.admin_port = admin.port
            await self._server.run(stop)
        if self._draining is not None:
            await self.runs.drain(timedelta(0))  # the grace is over, or a second signal cut it short
            await self._draining
        await self._inspections.close()
        await self._readiness.end()
        for engine in self._engines:
            await engine.close()
        await self._journal.close()
        self._state.close()

    def _begin_draining(self) -> None:
        self._inspections.begin_closing()
        self._draining = asyncio.ensure_future(self.runs.drain(self._settings.shutdown_grace))


def _server(settings: Settings, registry: CollectorRegistry) -> Server:
    return Server(
        "executor",
        settings.listen,
        ServerTls(settings.tls_cert, settings.tls_key, settings.tls_ca),
        authentication=PeerPermissions(PERMISSIONS),
        grace=settings.shutdown_grace + _END_ALLOWANCE,
        registry=registry,
        call_log_level=logging.DEBUG,  # some per run: the runs themselves are counted and recorded
    )


async def _sweep(engines: Sequence[Engine]) -> None:
    for engine in engines:
        name = engine.capabilities.name
        try:
            found = await engine.sweep()
        except Exception as error:
            _log.exception("sweep failed", extra=logs.fields(engine=name))
            raise StartError(
                f"what an earlier executor left in the engine {name} cannot be removed: {error}; see the log"
            ) from error
        if found:
            _log.warning("removed sandboxes of an earlier executor", extra=logs.fields(engine=name, sandboxes=found))


def _signer(file: Path) -> Signer:
    try:
        return Signer(_read(file))
    except (ValueError, TypeError) as error:
        raise StartError(f"{file} holds no Ed25519 private key in PEM form") from error


def _verifier(files: Sequence[Path]) -> Verifier:
    try:
        return Verifier.of(*(_read(file) for file in files))
    except (ValueError, TypeError) as error:
        raise StartError(f"{', '.join(map(str, files))}: not all are Ed25519 public keys in PEM form") from error


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise StartError(f"cannot read the key {file}: {error.strerror}") from error
