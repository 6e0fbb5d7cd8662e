"""What a program uses over time, through the whole stack: while it runs, and when it has ended."""

import asyncio
from datetime import timedelta

from crucible_client import State
from crucible_client.results import Observation
from tests.system.local import python

MIB = 1 << 20
KEEPS = f"import time\nkept = bytearray({32 * MIB})\ntime.sleep(5)"


async def test_samples_are_there_while_the_program_runs_and_all_of_them_when_it_has_ended(stack, client):
    name = (await client.submit(python(KEEPS))).name
    async with asyncio.timeout(40):
        while not (found := await client.usage_samples(name)).points:
            assert found.observation is Observation.NOT_OBSERVED
            await asyncio.sleep(0.1)
    assert (await client.get(name)).state is State.RUNNING
    ended = await client.wait(name)
    found = await client.usage_samples(name)
    assert (found.attempt, found.observation, found.reason) == (1, Observation.OBSERVED, "")
    assert ended.usage.samples == len(found.points) == sum(point.samples for point in found.points) > 20
    assert found.points[0].since_start >= timedelta(milliseconds=100)
    assert 32 * MIB < max(point.max_memory_bytes for point in found.points) <= ended.usage.peak_memory_bytes
    assert found.points[-1].cpu_time <= ended.usage.sandbox_cpu_time
    shown = stack.crucible("get", name, "--usage")
    assert [line.split("\t")[0] for line in shown.stdout.splitlines()] == [
        "CPUs",
        "memory",
        "tasks",
        "time",
        "CPU time",
    ]
