"""Progress is kept, never counted anew: after any operations it is what the rows say."""

import asyncio
import random
from datetime import timedelta

import pytest
from sqlalchemy import text

from crucible.evaluation.v1 import batch_pb2
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import signing
from crucible_rpc.errors import CallError
from crucible_storage import batch_tasks, progress
from crucible_storage.integrity import batches as integrity_of_batches
from crucible_storage.integrity.check import check as check_all
from tests.storage import world as w
from tests.storage.batch_world import ANYWAY, BatchWorld, id_of, item
from tests.storage.world import FENCE, exited, finished, report, started

pytestmark = pytest.mark.slow

COUNTED = """
    SELECT CASE WHEN i.end_kind IS NOT NULL THEN i.end_kind
                WHEN e.state = 1 AND e.blocked > 0 THEN 0 ELSE e.state END AS kind, count(*) AS number
    FROM batch_item i JOIN evaluation e ON e.seq = i.evaluation_seq WHERE i.batch = :batch GROUP BY 1
"""
STRAY = """
    SELECT count(*) FROM batch_item i JOIN evaluation e ON e.seq = i.evaluation_seq
    WHERE (e.state >= 4) <> (i.end_kind IS NOT NULL) OR e.batch <> i.batch OR e.blocked < 0
"""


async def check(batches, made):
    """Kept and counted in one snapshot."""

    def read(connection):
        for batch in made:
            counted = {row.kind: row.number for row in connection.execute(text(COUNTED), {"batch": id_of(batch)})}
            kept = connection.execute(
                text("SELECT kind, count AS number FROM batch_count WHERE batch = :batch"), {"batch": id_of(batch)}
            )
            assert {row.kind: row.number for row in kept if row.number} == counted
            items = connection.execute(text("SELECT items FROM batch WHERE id = :id"), {"id": id_of(batch)})
            assert items.scalar_one() == sum(counted.values())
        assert connection.execute(text(STRAY)).scalar_one() == 0
        assert list(integrity_of_batches.check(connection)) == []

    await batches.world.service.database.read(read)


class Actor:
    """Does random things to a few batches."""

    def __init__(self, world, seed):
        self.world, self.batches = world, BatchWorld(world)
        self.random = random.Random(seed)
        self.opened, self.made, self.keys, self.held = 0, [], {}, []

    async def open(self):
        if self.opened < 4:
            self.opened += 1
            held = self.random.random() < 0.3
            batch = await self.batches.open(f"r{self.opened}", start_when_complete=held)
            self.made.append(batch)
            self.keys[batch.name] = []

    async def add(self):
        batch = self.random.choice(self.made)
        keys, new = self.keys[batch.name], []
        for number in range(self.random.randint(1, 6)):
            key = f"k{len(keys) + number}"
            earlier = [*keys, *(one.key for one in new)]
            after = self.random.sample(earlier, min(len(earlier), self.random.randint(0, 3)))
            new.append(item(key=key, after=after, on_failure=self.random.choice([0, ANYWAY])))
        try:
            await self.batches.add(batch, new)
        except CallError:
            return
        keys += [one.key for one in new]

    async def lease(self):
        self.held += await self.world.lease(self.random.randint(1, 4))

    async def end(self):
        if self.held:
            one = self.held.pop(self.random.randrange(len(self.held)))
            how = self.random.random()
            if how < 0.7:
                await self.world.report(report(one, started(), finished(one, exited(self.random.choice([0, 0, 1])))))
            elif how < 0.85:
                await self.world.report(report(one, lost=work.RunLost(reason="lost", confirmed_gone=True)))
            else:
                await self.world.report(report(one, refused=work.Refused(reason="no", permanent=how > 0.95)))

    async def cancel_one(self):
        stored = await self.batches.evaluations(self.random.choice(self.made))
        if stored:
            await self.world.cancel(self.random.choice(list(stored.values())))

    async def cancel_batch(self):
        if self.random.random() < 0.2:
            await self.batches.cancel(self.random.choice(self.made))

    async def complete(self):
        if self.random.random() < 0.4:
            try:
                await self.batches.complete(self.random.choice(self.made), 0)
            except CallError:
                return

    async def time_passes(self):
        self.world.clock.advance(self.random.choice([timedelta(seconds=2), FENCE]))
        await self.world.sweep()

    async def act(self):
        acts = [self.add, self.add, self.lease, self.lease, self.end, self.end, self.end]
        acts += [self.open, self.cancel_one, self.cancel_batch, self.complete, self.time_passes]
        await self.random.choice(acts)()


@pytest.mark.parametrize("seed", range(6))
async def test_after_random_operations_the_kept_counts_are_what_the_rows_say(world, seed, monkeypatch):
    monkeypatch.setattr(batch_tasks, "PART", 5)
    await world.register()
    actor = Actor(world, seed)
    await actor.open()
    for _ in range(60):
        await asyncio.gather(*(actor.act() for _ in range(actor.random.randint(1, 4))))
        await check(actor.batches, actor.made)
    for batch in actor.made:
        if (await actor.batches.get(batch)).state == batch_pb2.BATCH_STATE_OPEN:
            await actor.batches.complete(batch, 0)
    async with asyncio.timeout(60):
        while True:  # everything ends: nothing waits for ever for what has ended
            await actor.batches.settled()
            world.clock.advance(timedelta(minutes=2))
            await world.sweep()
            actor.held += await world.lease(50)
            if not actor.held:
                break
            while actor.held:
                await actor.end()
    await check(actor.batches, actor.made)
    for batch in actor.made:
        now = await actor.batches.get(batch)
        assert now.state == batch_pb2.BATCH_STATE_ENDED, now
        assert now.progress.waiting == now.progress.queued == now.progress.running == 0
    verifier = signing.Verifier.of(w.RECORDS.public_pem)
    verdict = await world.service.database.read(lambda connection: check_all(connection, verifier))
    assert verdict.findings.shown == []


def test_every_kind_has_its_place_in_the_contract():
    counts = dict.fromkeys(range(8), 1)
    told = progress.message(counts)
    assert told == batch_pb2.BatchProgress(
        waiting=1, queued=1, running=2, succeeded=1, failed=1, cancelled=1, skipped=1
    )
    assert progress.unended(counts) == 4
