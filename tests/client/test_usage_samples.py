"""What a run used over time, as the SDK gives it and `crucible get --usage` shows it."""

import asyncio
import json
from datetime import timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.usage_samples_pb2 import UsagePoint
from crucible.gateway.v1.evaluation_service_pb2 import ListUsageSamplesResponse
from crucible_client import AsyncClient, Client
from crucible_client.cli.usage import curve
from crucible_client.results import Observation
from crucible_client.usage_samples import cpus, decoded
from tests.client.gateway_servicer import script

MIB = 1 << 20


def point(at, cpu, memory, *, tasks=12, count=1):
    made = UsagePoint(samples=count, memory_bytes=memory, min_memory_bytes=memory // 2, max_memory_bytes=2 * memory)
    made.tasks = made.min_tasks = made.max_tasks = tasks
    made.since_start.FromTimedelta(timedelta(seconds=at))
    made.cpu_time.FromTimedelta(timedelta(seconds=cpu))
    return made


ANSWER = ListUsageSamplesResponse(
    attempt=1,
    observation=pb.OBSERVATION_OBSERVED,
    points=[point(1, 0.5, 10 * MIB), point(2, 1.5, 20 * MIB, count=4), point(4, 1.5, 40 * MIB, tasks=30)],
)


@pytest.fixture
async def name(crucible, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(script(end={"exited": {"code": 0}}))
    return (await crucible("submit", str(path))).lines[0]


def test_points_are_plain_values_with_the_cpus_between_them():
    told = decoded(ANSWER)
    assert (told.attempt, told.observation, told.reason) == (1, Observation.OBSERVED, "")
    assert told.points[1].since_start == timedelta(seconds=2)
    assert (told.points[1].samples, told.points[1].max_memory_bytes, told.points[1].tasks) == (4, 40 * MIB, 12)
    assert cpus(told.points) == [None, 1.0, 0.0]
    assert cpus(()) == []


def test_curves_have_equal_time_and_say_where_nothing_is_known():
    points = decoded(ANSWER).points
    drawn = curve(points, cpus(points))
    assert (len(drawn), drawn[0], drawn[20], drawn[59]) == (60, " ", "█", "▁")
    memory = curve(points, [one.memory_bytes for one in points])
    assert (memory[5], memory[-1]) == ("▃", "█")
    still = decoded(ListUsageSamplesResponse(points=[point(0, 0, 0)])).points
    assert curve(still, [0]).strip("▁ ") == ""


async def test_both_clients_ask_for_an_attempt(config, gateway, name):
    gateway.usage_samples = ANSWER
    async with AsyncClient(config) as client:
        assert await client.usage_samples(name, attempt=1) == decoded(ANSWER)
    assert gateway.asked.pop() == (name, 1)
    with Client(config) as blocking:
        assert await asyncio.to_thread(blocking.usage_samples, name) == decoded(ANSWER)
    assert gateway.asked.pop() == (name, 0)


async def test_get_usage_draws_three_curves(crucible, gateway, name):
    gateway.usage_samples = ANSWER
    lines = [line.split("\t") for line in (await crucible("get", name, "--usage", "--attempt", "1")).lines]
    assert [line[0] for line in lines] == ["CPUs", "memory", "tasks", "time", "CPU time"]
    assert [line[2] for line in lines] == ["at most 1.00", "at most 80.0 MiB", "at most 30", "6 samples", "attempt 1"]
    assert gateway.asked[-1] == (name, 1)
    shown = json.loads((await crucible("get", name, "--usage", "--json")).out)
    assert shown["observation"] == "OBSERVED"
    assert shown["points"][1] == {
        "since_start_seconds": 2.0,
        "cpu_time_seconds": 1.5,
        "samples": 4,
        "memory_bytes": 20 * MIB,
        "min_memory_bytes": 10 * MIB,
        "max_memory_bytes": 40 * MIB,
        "tasks": 12,
        "min_tasks": 12,
        "max_tasks": 12,
    }


async def test_get_usage_never_shows_nothing_as_if_nothing_was_used(crucible, gateway, name):
    gateway.usage_samples = ListUsageSamplesResponse(
        attempt=1, observation=pb.OBSERVATION_NOT_OBSERVED, reason="no cgroup\x1b[2J"
    )
    assert (await crucible("get", name, "--usage")).lines == ["NOT_OBSERVED: no cgroup\\x1b[2J"]
    gateway.usage_samples = ListUsageSamplesResponse(attempt=1, observation=pb.OBSERVATION_OBSERVED)
    assert (await crucible("get", name, "--usage")).lines == ["it ended before the first sample was due"]
    gateway.usage_samples = ListUsageSamplesResponse(
        attempt=1, observation=pb.OBSERVATION_PARTIAL, reason="2 of 9 samples are kept", points=ANSWER.points[:2]
    )
    assert (await crucible("get", name, "--usage")).lines[0] == "PARTIAL: 2 of 9 samples are kept"
    assert (await crucible("get", name, "--attempt", "1")).code == 2
