"""The view of the executors: how old it may be, and when storage is asked"""

import asyncio
from datetime import timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.storage.v1 import status_service_pb2 as status
from crucible_gateway.executors import Executors
from crucible_rpc.errors import FailedPreconditionError, UnavailableError
from tests.gateway.fake_servicer import an_executor
from tests.gateway.test_limits import defaults, engine


class Source:
    """Answers when it is let; counts how often it was asked."""

    def __init__(self):
        self.asked = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.known = [an_executor()]
        self.away = False

    async def executors(self):
        self.asked += 1
        await self.answering.wait()
        if self.away:
            raise UnavailableError("PEER_UNAVAILABLE", "away")
        return status.ListExecutorsResponse(executors=self.known)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def executors(source, clock):
    return Executors(source, ttl=timedelta(seconds=1), grace=timedelta(seconds=10), clock=clock)


def spec(name=""):
    program = ev.Program(runtime="python", files=[ev.File(path="main.py", content=b"1")])
    return ev.EvaluationSpec(program=program, engine=name)


async def complete(executors, wanted=None):
    async with asyncio.timeout(5):
        await executors.complete(wanted or spec(), defaults())


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in a task of its own
            await asyncio.sleep(0.01)


async def test_a_recent_answer_is_used_and_storage_is_not_asked(executors, source, clock):
    await complete(executors)
    clock.now += 1.0
    await complete(executors)
    assert source.asked == 1


async def test_an_older_one_is_used_while_storage_is_asked_beside_it(executors, source, clock):
    await complete(executors)
    source.answering.clear()
    clock.now += 9.0
    await complete(executors)
    await complete(executors)
    await until(lambda: source.asked == 2)  # once for both
    source.known = [an_executor("new")]
    source.answering.set()
    await until(lambda: executors.last_known.executors[0].executor.id == "new")
    clock.now += 1.0
    await complete(executors)
    assert (executors.last_known.executors[0].executor.id, source.asked) == ("new", 2)


async def test_one_that_is_too_old_is_not_used(executors, source, clock):
    await complete(executors)
    clock.now += 10.1
    await complete(executors)
    assert source.asked == 2
    source.away = True
    clock.now += 10.1
    with pytest.raises(UnavailableError):
        await complete(executors)


async def test_a_storage_that_is_away_is_asked_again_and_spoils_nothing(executors, source, clock):
    await complete(executors)
    source.away = True
    for asked in (2, 3):
        clock.now += 2.0
        await complete(executors)
        await until(lambda asked=asked: source.asked == asked)


async def test_nothing_is_refused_for_what_was_known_before(executors, source, clock):
    await complete(executors)
    clock.now += 5.0
    source.known = [an_executor(), an_executor("new", engines=[engine("fresh")])]
    await complete(executors, spec("fresh"))
    with pytest.raises(FailedPreconditionError):
        await complete(executors, spec("none"))


async def test_who_wants_it_as_it_is_gets_it_so(executors, source, clock):
    await executors.now()
    clock.now += 1.1
    await executors.now()
    assert source.asked == 2
