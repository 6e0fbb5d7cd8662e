"""A workflow as one batch, through the whole stack and real sandboxes."""

import asyncio

from crucible_client import BatchItem, BatchOrder, BatchState, State
from tests.system.local import python

WORKFLOW = [
    BatchItem(python("print('prepared')"), key="prepare"),
    BatchItem(python("print(6 * 7)"), key="run-good", after=("prepare",)),
    BatchItem(python("raise SystemExit(3)"), key="run-bad", after=("prepare",)),
    BatchItem(python("print('never')"), key="use-bad", after=("run-bad",)),
    BatchItem(python("print('graded')"), key="grade", after=("run-good", "run-bad", "use-bad"), run_anyway=True),
]


async def test_prepare_run_and_grade_are_one_batch(client):
    async with asyncio.timeout(120):
        results = {one.key: one async for one in client.run_batch(WORKFLOW, order=BatchOrder.ITEM)}
    states = {key: one.evaluation.state for key, one in results.items()}
    assert states == {
        "prepare": State.SUCCEEDED,
        "run-good": State.SUCCEEDED,
        "run-bad": State.FAILED,
        "use-bad": State.CANCELLED,
        "grade": State.SUCCEEDED,
    }
    ended = {key: one.evaluation.end_time for key, one in results.items()}
    began = {key: one.evaluation.start_time for key, one in results.items()}
    assert ended["prepare"] <= min(began["run-good"], began["run-bad"])
    assert max(ended[key] for key in ("run-good", "run-bad", "use-bad")) <= began["grade"]
    assert results["use-bad"].evaluation.termination.dependency == results["run-bad"].evaluation.name
    assert results["run-good"].evaluation.stdout.preview == b"42\n"
    assert results["grade"].evaluation.provenance.record is not None
    batch = await client.get_batch(results["grade"].evaluation.batch)
    assert (batch.state, batch.progress.succeeded, batch.progress.skipped) == (BatchState.ENDED, 3, 1)


async def test_a_cancelled_batch_ends_its_sandboxes_and_what_waits(client):
    items = [python("import time\nprint('up', flush=True)\ntime.sleep(60)") for _ in range(12)]
    batch = await client.create_batch(items)
    async with asyncio.timeout(120):
        async for _ in client.watch_batch(batch.name):
            if (await client.get_batch(batch.name)).progress.running:
                break
        cancelled = await client.cancel_batch(batch.name, reason="enough")
        assert cancelled.state is BatchState.CANCELLING
        last = [one async for one in client.watch_batch(batch.name)][-1]
    assert (last.state, last.progress.cancelled) == (BatchState.ENDED, 12)
    async for one in client.list(batch=batch.name):
        assert one.termination.confirmed
        assert one.termination.reason == "enough"
