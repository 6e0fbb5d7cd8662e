"""What happens while a process is down: the others work on, callers are told, and nothing accepted is lost."""

from contextlib import contextmanager
from datetime import timedelta

import pytest

from crucible_client import State
from crucible_client.errors import UnavailableError
from crucible_deploy import environments, host
from tests.system.local import python, until


@contextmanager
def kept_down(stack, process: str):
    """Kills a process and takes its interpreter away, so that the supervisor's restarts fail until the block ends."""
    interpreter = environments.interpreter(stack.layout, process)
    away = interpreter.with_name("python.away")
    interpreter.rename(away)
    try:
        killed = stack.kill(process)
        until(lambda: not killed.alive)
        yield
    finally:
        away.rename(interpreter)


async def is_whole_again(stack) -> None:
    """Also for those who watch: the gateway's channel to a monitor that was away takes its time to come back."""
    async with stack.client(retry_for=timedelta(seconds=30)) as client:
        done = await client.run(python("print(1)"))
        assert done.state is State.SUCCEEDED
        assert [event async for event in client.watch(done.name)]


async def test_storage_down_is_unavailable_with_a_hint_and_nothing_accepted_is_lost(stack):
    async with stack.client(retry_for=timedelta(0)) as client:
        accepted = await client.submit(python("import time; time.sleep(3); print('kept')"))
        async for event in client.watch(accepted.name):
            if getattr(event, "state", None) is State.RUNNING:
                break
        with kept_down(stack, "storage"):
            with pytest.raises(UnavailableError) as refused:
                await client.submit(python("print(1)"))
            assert refused.value.retry_after
            status = await client.status()
            serving = {one.process: one.serving for one in status.processes}
            assert not serving["storage"]
            assert serving["monitor"]
            assert status.queue is None
    await is_whole_again(stack)
    async with stack.client() as client:
        done = await client.wait(accepted.name, within=timedelta(seconds=60))
        assert done.state is State.SUCCEEDED
        assert done.stdout.preview == b"kept\n"


async def test_monitor_down_leaves_runs_working(stack):
    async with stack.client(retry_for=timedelta(0)) as client:
        with kept_down(stack, "monitor"):
            done = await client.run(python("print('works')"))
            assert done.state is State.SUCCEEDED
            with pytest.raises(UnavailableError):
                async for _event in client.watch(done.name):
                    pass
    await is_whole_again(stack)


async def test_worker_down_keeps_work_in_the_queue(stack):
    async with stack.client() as client:
        with kept_down(stack, "worker"):
            waiting = await client.submit(python("print('later')"))
            assert (await client.get(waiting.name)).state is State.QUEUED
        done = await client.wait(waiting.name, within=timedelta(seconds=60))
        assert done.state is State.SUCCEEDED
        assert not done.failed_attempts


async def test_executor_down_is_a_recorded_failure_and_a_second_attempt(stack):
    async with stack.client() as client:
        running = await client.submit(python("print('up', flush=True)\nimport time; time.sleep(2)"))
        async for event in client.watch(running.name):
            if type(event).__name__ == "OutputChunk":
                break
        stack.kill("executor")
        done = await client.wait(running.name, within=timedelta(seconds=60))
        assert done.state is State.SUCCEEDED
        assert done.attempt == 2
        assert len(done.failed_attempts) == 1
        assert done.stdout.preview == b"up\n"
    assert not host.wait_for_none(stack.layout, 5, spare_waiting=True)
