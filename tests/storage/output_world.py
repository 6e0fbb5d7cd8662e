"""What tests of large output do most: have a program write much, move it, and read it back."""

from datetime import timedelta

from crucible_storage.output_mover import REST, OutputMover
from tests.storage import world as w

CHUNK = 16 << 10
MINUTE = timedelta(minutes=1)


async def writes(world, stdout=b"", stderr=b"", *, chunk=CHUNK, end=None, **parts):
    """An evaluation that wrote this and has ended; its assignment."""
    await world.create(**parts)
    await world.register()
    run = await world.lease_one()
    await tell(world, run, stdout, chunk)
    await tell(world, run, stderr, chunk, w.STDERR)
    last = w.finished(run, stdout=stdout, stderr=stderr) if end is None else end(run, stdout, stderr)
    assert await world.report(w.report(run, last)) == []
    return run


async def tell(world, run, data, chunk=CHUNK, stream=w.STDOUT):
    events = [w.output(data[at : at + chunk], at, stream) for at in range(0, len(data), chunk)]
    assert await world.report(w.report(run, w.started(), *events)) == []


async def move(world):
    """All that may be moved once it has rested."""
    world.clock.advance(REST)
    return await world.service.output_mover.look()


def mover(world, blob_store=None):
    """One of our own, that waits for no rest."""
    own = world.service.output_mover
    return OutputMover(
        world.service.database, blob_store or own._store, own._objects, world.clock, own._above, rest=timedelta(0)
    )


def evaluation_id(run):
    return run.evaluation.removeprefix("evaluations/")


def parts(world, run, offset=0, stream=w.STDOUT, attempt=0, tenant="t"):
    return world.service.evaluations.read_output(tenant, evaluation_id(run), stream, offset, attempt)


async def read(world, run, *where, **which):
    return b"".join([data async for _, data in parts(world, run, *where, **which)])


async def events(world, run):
    log = world.service.events.read("t", evaluation_id(run), 0)
    return [event async for batch in log for event in batch.events]


async def kept_here(world):
    """Bytes of output that the database has."""
    query = "SELECT coalesce(sum(length(data)), 0) FROM output"
    return await world.service.database.read(lambda connection: connection.exec_driver_sql(query).scalar_one())


async def states(world):
    query = "SELECT state FROM large_output ORDER BY evaluation_seq, attempt, stream"
    rows = await world.service.database.read(lambda connection: connection.exec_driver_sql(query).fetchall())
    return [row[0] for row in rows]
