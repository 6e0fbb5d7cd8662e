"""All parts of storage, put together over an open state folder."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from crucible_rpc.signing import Signer, Verifier
from crucible_storage import cursors, models
from crucible_storage.api_keys import ApiKeys
from crucible_storage.clock import Clock
from crucible_storage.cursors import Cursors
from crucible_storage.database import Database
from crucible_storage.databases.base import Backend
from crucible_storage.evaluations import Evaluations
from crucible_storage.event_log import EventLog
from crucible_storage.executors import Executors
from crucible_storage.hub import Hub
from crucible_storage.inspections import Inspections
from crucible_storage.leases import Leases
from crucible_storage.lists import Lists
from crucible_storage.metrics import Metrics
from crucible_storage.policy import Policy
from crucible_storage.reports import Reports
from crucible_storage.state import open_state
from crucible_storage.sweeper import Sweeper


@dataclass(frozen=True, slots=True)
class Service:
    """The domain of storage."""

    database: Database
    hub: Hub
    policy: Policy
    evaluations: Evaluations
    lists: Lists
    executors: Executors
    leases: Leases
    reports: Reports
    events: EventLog
    api_keys: ApiKeys
    inspections: Inspections


@asynccontextmanager
async def running(
    folder: Path,
    policy: Policy,
    clock: Clock,
    signer: Signer,
    verifier: Verifier,
    metrics: Metrics,
    backend: Backend | None = None,
) -> AsyncIterator[Service]:
    """Opens the state folder and the database (None: the file in the folder), and sweeps leases until the block ends.

    Raises:
        StartError: the folder or the file cannot be used.
    """
    hub = Hub()
    state = open_state(folder, hub.publish, metrics, backend)
    database = state.database
    database.start()
    try:
        service = await _composed(database, hub, policy, clock, signer, verifier)
        metrics.start(await _counts(database), database.last_position)
        sweeping = asyncio.create_task(Sweeper(service.leases, policy, clock).run())
        try:
            yield service
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
    finally:
        await state.close()


async def _composed(
    database: Database, hub: Hub, policy: Policy, clock: Clock, signer: Signer, verifier: Verifier
) -> Service:
    executors = Executors(database, policy, clock)
    await executors.load()
    key = await database.write(cursors.load_key)
    inspections = Inspections(database, hub, executors, signer, verifier, policy, clock)
    await inspections.load()
    return Service(
        database=database,
        hub=hub,
        policy=policy,
        evaluations=Evaluations(database, hub, policy, clock),
        lists=Lists(database, Cursors(key)),
        executors=executors,
        leases=Leases(database, hub, executors, signer, policy, clock),
        reports=Reports(database, verifier, policy, clock),
        events=EventLog(database, hub),
        api_keys=ApiKeys(database, clock),
        inspections=inspections,
    )


async def _counts(database: Database) -> dict[int, int]:
    row = models.evaluation_count.c
    query = select(row.state, func.sum(row.count)).group_by(row.state)
    rows = await database.read(lambda connection: connection.execute(query).fetchall())
    return {state: int(count) for state, count in rows}
