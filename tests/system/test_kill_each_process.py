"""`kill -9` of each process in turn while 50 evaluations are under way: all end, and none ran twice in secret."""

import asyncio

import pytest

from crucible_client import Limits, State
from crucible_deploy import host
from crucible_deploy.chaos.alive import Watcher
from crucible_deploy.chaos.counted_runsc import MARK, CountedRunsc
from crucible_deploy.paths import DEFAULT_CACHE
from tests.system.local import LocalStack, python, until

EVALUATIONS = 50
CODE = """
# {mark}{number}'
import time
for _ in range(6):
    print('{number}', flush=True)
    time.sleep(0.1)
"""


@pytest.fixture
def counted(stack):
    made = CountedRunsc.make(DEFAULT_CACHE)
    local = LocalStack(made.cache, like=stack)
    try:
        local.up("--slots", "4", "--pool", "0")  # with one, a sandbox lives before its run
        yield local, made
    finally:
        local.crucible("down")
        local.remove()


async def test_all_50_end_whatever_is_killed(counted):
    stack, runsc = counted
    checks = len(runsc.sandboxes())  # the executor tries each engine when it starts
    with Watcher(stack.layout) as watcher:
        evaluations = await _run_while_killing(stack)
    assert len(evaluations) == EVALUATIONS
    for number, done in enumerate(evaluations):
        assert done.state is State.SUCCEEDED, (number, done.termination, done.failed_attempts)
        assert done.stdout.preview == f"{number}\n".encode() * 6
    _judge_starts(evaluations, runsc, watcher)
    assert len(runsc.sandboxes()) > checks + EVALUATIONS - 1
    assert any(done.failed_attempts for done in evaluations), "no kill hit a run: nothing was proved"
    left = host.wait_for_none(stack.layout, 10)
    assert not left, str(left)
    stack.down()
    left = host.traces(stack.layout)
    assert not left, str(left)


async def _run_while_killing(stack):
    async with stack.client() as client:
        specs = [
            python(CODE.format(mark=MARK.decode(), number=number), limits=Limits(memory_bytes=128 << 20))
            for number in range(EVALUATIONS)
        ]
        names = [(await client.submit(spec)).name for spec in specs]
        for process in ("worker", "executor", "storage", "monitor", "gateway"):
            await _two_more_finish(client)
            killed = stack.kill(process)
            await asyncio.to_thread(
                until, lambda killed=killed, process=process: stack.processes().get(process) not in (None, killed)
            )
        return [await client.wait(name) for name in names]


async def _two_more_finish(client) -> None:
    """Waits until work goes on after the kill before, with something under way."""
    finished = None
    async with asyncio.timeout(60):
        while True:
            queue = (await client.status()).queue  # None while storage is away
            if queue is not None:
                finished = queue.finished if finished is None else finished
                if queue.finished >= finished + 2 and queue.running:
                    return
            await asyncio.sleep(0.05)


def _judge_starts(evaluations, runsc, watcher) -> None:
    given = runsc.by_mark()
    assert set(given) == {str(number) for number in range(EVALUATIONS)}
    for number, done in enumerate(evaluations):
        sandboxes = given[str(number)]
        # At most one start per attempt, and each attempt after the first has the failure of the one before.
        assert len(sandboxes) <= done.attempt, (number, sandboxes, done.failed_attempts)
        assert [one.attempt for one in done.failed_attempts] == list(range(1, done.attempt))
        assert all(one.reason for one in done.failed_attempts)
        assert not watcher.overlap(sandboxes), (number, sandboxes)
    assert watcher.looks > 100
