"""All parts of storage, put together over an open state folder."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from crucible_rpc.signing import Signer, Verifier
from crucible_storage import artifacts, cursors, models
from crucible_storage.api_keys import ApiKeys
from crucible_storage.artifacts.artifacts import Artifacts
from crucible_storage.artifacts.blob_store import BlobStore
from crucible_storage.artifacts.collector import Collector
from crucible_storage.artifacts.objects import Objects
from crucible_storage.artifacts.uploads import Uploads
from crucible_storage.audit_log import AuditLog
from crucible_storage.batch_tasks import BatchTasks
from crucible_storage.batch_watch import BatchWatches
from crucible_storage.batches import Batches
from crucible_storage.clock import Clock
from crucible_storage.cursors import Cursors
from crucible_storage.database import Database
from crucible_storage.databases.base import Backend
from crucible_storage.dead_letters import DeadLetters
from crucible_storage.deletion import Deletion, Keep
from crucible_storage.ended_views import EndedViews
from crucible_storage.evaluations import Evaluations
from crucible_storage.event_log import EventLog
from crucible_storage.executors import Executors
from crucible_storage.hub import Hub
from crucible_storage.inspections import Inspections
from crucible_storage.keys import HeadKeys
from crucible_storage.leases import Leases
from crucible_storage.lists import Lists
from crucible_storage.login_failures import LoginFailures
from crucible_storage.maintenance.live import LiveDatabase
from crucible_storage.metrics import Metrics
from crucible_storage.output_mover import OutputMover
from crucible_storage.pauses import Pauses
from crucible_storage.policy import Policy
from crucible_storage.receipts import Receipts
from crucible_storage.reports import Reports
from crucible_storage.retention import Retention
from crucible_storage.sealer import Sealer
from crucible_storage.state import FILE, open_state
from crucible_storage.sweeper import Sweeper
from crucible_storage.tenants import Tenants
from crucible_storage.usage_samples import Ages, Samples


@dataclass(frozen=True, slots=True)
class Service:
    """The domain of storage."""

    database: Database
    hub: Hub
    policy: Policy
    evaluations: Evaluations
    lists: Lists
    batches: Batches
    batch_tasks: BatchTasks
    batch_watches: BatchWatches
    executors: Executors
    leases: Leases
    reports: Reports
    events: EventLog
    api_keys: ApiKeys
    inspections: Inspections
    audit_log: AuditLog
    receipts: Receipts
    sealer: Sealer
    login_failures: LoginFailures
    heads: HeadKeys
    tenants: Tenants
    pauses: Pauses
    dead_letters: DeadLetters
    deletion: Deletion
    samples: Samples
    live: LiveDatabase
    uploads: Uploads
    artifacts: Artifacts
    collector: Collector
    output_mover: OutputMover


@asynccontextmanager
async def running(
    folder: Path,
    policy: Policy,
    clock: Clock,
    signer: Signer,
    verifier: Verifier,
    heads: HeadKeys,
    metrics: Metrics,
    backend: Backend | None = None,
    keep: Keep | None = None,
    ages: Ages | None = None,
    blobs: BlobStore | None = None,
) -> AsyncIterator[Service]:
    """Opens the state folder and the database (None: the file in the folder) until the block ends.

    Meanwhile it sweeps expired leases, seals the audit log, works on batches, deletes what is old, moves large output
    to the artifact store, and removes artifacts that nobody needs. Without `blobs` artifacts are kept in the state
    folder; then large output of a shared database stays there, for other processes do not see that folder.

    Raises:
        StartError: the folder or the file cannot be used.
    """
    hub = Hub()
    state = open_state(folder, hub.publish, metrics, backend)
    database = state.database
    database.start()
    try:
        live = LiveDatabase(folder / FILE, clock)
        moves = blobs is not None or not database.shared
        blobs = artifacts.choose(None, None, folder) if blobs is None else blobs
        await blobs.prepare()
        service = await _composed(
            database, hub, policy, clock, signer, verifier, heads, live, ages or Ages(), blobs, metrics
        )
        metrics.start(await _counts(database), database.last_position)
        jobs = [
            Sweeper(database, policy, clock).run(),
            Retention(service.deletion, service.samples, keep or Keep(), clock).run(),
            service.sealer.run(),
            service.login_failures.run(),
            service.batch_tasks.run(),
            service.collector.run(),
        ]
        if moves:
            jobs.append(service.output_mover.run())
        if database.shared:
            jobs.append(service.executors.keep_stored())
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            yield service
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task
    finally:
        await state.close()


async def _composed(
    database: Database,
    hub: Hub,
    policy: Policy,
    clock: Clock,
    signer: Signer,
    verifier: Verifier,
    heads: HeadKeys,
    live: LiveDatabase,
    ages: Ages,
    blobs: BlobStore,
    metrics: Metrics,
) -> Service:
    executors = Executors(database, policy, clock)
    await executors.load()
    key = await database.write(cursors.load_key)
    inspections = Inspections(database, hub, executors, signer, verifier, policy, clock)
    await inspections.load()
    sealer = Sealer(database, heads.signer, clock)
    failures = LoginFailures(database, clock)
    pages = Cursors(key)
    ended = EndedViews(policy.cache_bytes, metrics)
    evaluations = Evaluations(database, hub, blobs, ended, policy, clock)
    objects = Objects(database, blobs, clock)
    mover = OutputMover(database, blobs, objects, clock, policy.inline_output_bytes, metrics.output_moved)
    return Service(
        database=database,
        hub=hub,
        policy=policy,
        evaluations=evaluations,
        lists=Lists(database, pages),
        batches=Batches(database, policy, clock, pages),
        batch_tasks=BatchTasks(database, hub, clock),
        batch_watches=BatchWatches(database, hub),
        audit_log=AuditLog(database, sealer, heads.verifier, pages),
        receipts=Receipts(database, sealer),
        sealer=sealer,
        login_failures=failures,
        heads=heads,
        executors=executors,
        leases=Leases(database, hub, executors, signer, policy, clock),
        reports=Reports(database, verifier, policy, clock),
        events=EventLog(database, hub, blobs),
        api_keys=ApiKeys(database, clock, failures),
        inspections=inspections,
        tenants=Tenants(database, clock),
        pauses=Pauses(database, clock),
        dead_letters=DeadLetters(database, pages, evaluations),
        deletion=Deletion(database, clock),
        samples=Samples(database, clock, ages),
        live=live,
        uploads=Uploads(database, objects, policy.max_artifact_bytes),
        artifacts=Artifacts(database, blobs),
        collector=Collector(database, blobs, clock),
        output_mover=mover,
    )


async def _counts(database: Database) -> dict[int, int]:
    row = models.evaluation_count.c
    query = select(row.state, func.sum(row.count)).group_by(row.state)
    rows = await database.read(lambda connection: connection.execute(query).fetchall())
    return {state: int(count) for state, count in rows}
