"""`kill -9` of storage while a batch is streamed to it: the client goes on by itself, and every item is there once."""

import asyncio
from datetime import timedelta

from crucible_client import BatchItem, BatchState, State
from tests.system.local import python

ITEMS = 1800
KILLS = (700, 1700)


async def test_a_batch_is_whole_though_storage_is_killed_twice_while_it_is_streamed(stack):
    async def items():
        for number in range(ITEMS):
            if number in KILLS:
                killed.append(stack.kill("storage"))
            yield BatchItem(python(f"print({number})"), key=f"k{number}")

    killed = []
    async with stack.client(retry_for=timedelta(seconds=60)) as client, asyncio.timeout(120):
        await client.pause_queue(reason="what is counted must not run meanwhile")
        try:
            batch = await client.create_batch(items(), request_id="killed-twice")
            assert len(killed) == len(KILLS)
            assert len({one.pid for one in killed}) == len(KILLS)
            assert (batch.state, batch.items, batch.progress.queued) == (BatchState.RUNNING, ITEMS, ITEMS)
            names = [one.name async for one in client.list(batch=batch.name, page_size=1000)]
            assert len(set(names)) == ITEMS
            again = [BatchItem(python(f"print({number})"), key=f"k{number}") for number in range(ITEMS)]
            assert await client.create_batch(again, request_id="killed-twice") == batch
            await client.cancel_batch(batch.name, reason="counted")
            last = [one async for one in client.watch_batch(batch.name)][-1]
            assert (last.state, last.progress.cancelled, last.progress.ended) == (BatchState.ENDED, ITEMS, ITEMS)
        finally:
            await client.resume_queue()
        assert (await client.run(python("print(1)"))).state is State.SUCCEEDED
    checked = await asyncio.to_thread(stack.crucible, "storage", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
