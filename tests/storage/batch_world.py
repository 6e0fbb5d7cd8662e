"""Short names for what tests do with batches."""

from sqlalchemy import text

from crucible.evaluation.v1 import batch_pb2
from crucible_storage import store, views
from crucible_storage.batch_items import Item
from crucible_storage.batches import Header
from tests.storage import world as w
from tests.storage.world import exited, finished, killed, report, started

__all__ = ["ANYWAY", "BatchWorld", "id_of", "item", "killed"]

ANYWAY = batch_pb2.ON_DEPENDENCY_FAILURE_RUN_ANYWAY


def item(code=b"print(1)", *, key="", after=(), on_failure=0, **parts):
    return batch_pb2.BatchItem(key=key, spec=w.spec(code, **parts), after=after, on_failure=on_failure)


def id_of(batch):
    return batch.name.removeprefix("batches/")


class BatchWorld:
    """Batches of one storage."""

    def __init__(self, world):
        self.world = world
        self.service = world.service.batches

    async def open(self, request_id="r1", *, tenant="t", labels=None, start_when_complete=False):
        return await self.service.open(Header(tenant, "key-1", request_id, labels or {}, start_when_complete))

    async def add(self, batch, items, *, first=0):
        made = [Item.of(one, first + n, batch.tenant, "key-1") for n, one in enumerate(items)]
        return await self.service.add(batch.tenant, id_of(batch), made)

    async def complete(self, batch, items):
        return await self.service.complete(batch.tenant, id_of(batch), items)

    async def create(self, items, *, complete=True, **header):
        batch = await self.open(**header)
        await self.add(batch, items)
        return await (self.complete(batch, len(items)) if complete else self.get(batch))

    async def get(self, batch):
        return await self.service.get(batch.tenant, id_of(batch))

    async def cancel(self, batch):
        return await self.service.cancel(batch.tenant, id_of(batch), "key-2", "enough")

    async def settled(self):
        """Waits until nothing is left to be done in the background."""
        while await self.world.service.batch_tasks.step():
            pass

    async def keys(self, batch):
        """The key of each item by its evaluation's name."""
        return {one.name: key for key, one in (await self.evaluations(batch)).items()}

    async def evaluations(self, batch):
        """The evaluations by key, in the order of their numbers, in one snapshot."""
        query = text(
            "SELECT i.key, e.id FROM batch_item i JOIN evaluation e ON e.seq = i.evaluation_seq "
            "WHERE i.batch = :batch ORDER BY i.number"
        )

        def read(connection):
            rows = connection.execute(query, {"batch": id_of(batch)}).fetchall()
            return {
                key: views.complete(connection, store.load_owned(connection, batch.tenant, evaluation_id))
                for key, evaluation_id in rows
            }

        return await self.world.service.database.read(read)

    async def run_next(self, batch, *codes):
        """Leases and ends as many items as there are exit codes; answers their keys."""
        await self.settled()
        keys = await self.keys(batch)
        ran = []
        for code in codes:
            [assignment] = await self.world.lease(1)
            ran.append(keys[assignment.evaluation])
            assert await self.world.report(report(assignment, started(), finished(assignment, exited(code)))) == []
        await self.settled()
        return ran
