"""The storm of programs and faults ends: in bounded time, with every fault undone, and at once when it cannot go on."""

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest

from crucible_deploy.chaos import storm
from crucible_deploy.chaos.faults import ChaosError, Fault, Scene
from crucible_deploy.chaos.judge import Promise
from crucible_deploy.chaos.result import Chaos
from crucible_deploy.chaos.storm import Storm
from crucible_deploy.stack import Leases
from crucible_rpc.errors import NotFoundError

SHORT = 0.01


class Client:
    """Whose programs end at once, or never: all, or one; or that does not know one any more."""

    def __init__(self, *, ends=True, endless="", lost=""):
        self.ends = ends
        self.endless = endless
        self.lost = lost

    async def submit(self, spec, request_id):
        return SimpleNamespace(name=request_id)

    async def wait(self, name):
        if name == f"chaos-{self.lost}":
            raise NotFoundError("NOT_FOUND", "there is none")
        await asyncio.sleep(SHORT if self.ends and name != f"chaos-{self.endless}" else 60)
        return SimpleNamespace(name=name, termination="exited")


def storm_of(count, *faults, client=None, within=60.0, said=None):
    @asynccontextmanager
    async def connected(**_):
        yield client or Client()

    found = Chaos(1, count)
    scene = Scene(SimpleNamespace(client=connected), None, None, Leases())
    tell = (lambda _: None) if said is None else said.append
    return Storm(scene, found, list(faults), (SHORT, SHORT), 3, SHORT, timedelta(seconds=within), tell), found


def fault(happen):
    async def happens(scene, chance):
        await happen()
        return []

    return Fault("a fault", 1, happens)


async def nothing():
    pass


async def test_as_many_programs_run_as_are_asked_for_and_every_fault_happens():
    running, found = storm_of(20, fault(nothing))
    marks = {one.case.mark for one in await running.run()}
    assert {str(number) for number in range(20)} <= marks
    assert "long0" in marks
    assert found.faults["a fault"]
    assert not found.time_over


async def test_no_program_begins_when_the_time_is_over_and_what_began_is_there_to_be_judged():
    running, found = storm_of(10**6, fault(nothing), within=0.2)
    begun = time.monotonic()
    ended = await running.run()
    assert time.monotonic() - begun < 20
    assert found.time_over
    assert 0 < len(ended) < 10**6


async def test_program_that_a_fault_asked_for_comes_to_its_end_as_the_others():
    begun = []

    async def meets_a_program(scene, chance):
        begun.append(scene.begin(1.0))
        return []

    running, found = storm_of(5, Fault("a fault", 1, meets_a_program))
    ended = await running.run()
    assert len(set(begun)) == len(begun) == found.faults["a fault"] > 0
    assert set(begun) <= {one.case.mark for one in ended}


async def test_fault_that_is_under_way_at_the_end_is_undone():
    state = []

    async def stops_a_server():
        state.append("stopped")
        await asyncio.sleep(0.2)
        state.append("started")

    running, _ = storm_of(5, fault(stops_a_server), within=SHORT)
    await running.run()
    assert state.count("stopped") == state.count("started") > 0


async def test_stack_that_does_not_come_back_ends_the_storm_at_once():
    async def breaks():
        raise ChaosError("storage was not started again")

    running, _ = storm_of(5, fault(breaks), client=Client(ends=False))
    async with asyncio.timeout(20):
        with pytest.raises(ChaosError, match="not started again"):
            await running.run()


@pytest.mark.parametrize("endless", ["1", "long0"])
async def test_program_that_comes_to_no_end_is_named_and_what_began_is_there_to_be_judged(monkeypatch, endless):
    monkeypatch.setattr(storm, "_STUCK_SECONDS", 0.5)
    state = []

    async def stops_a_server():
        state.append("stopped")
        await asyncio.sleep(0.2)
        state.append("started")

    running, found = storm_of(10**6, fault(stops_a_server), client=Client(endless=endless))
    async with asyncio.timeout(20):
        ended = await running.run()
    ((promise, text),) = found.wrong
    assert promise is Promise.END
    assert f"program {endless} was not at its end" in text
    assert found.endless == [endless]
    assert 0 < len(ended) == found.accepted - 1
    assert state.count("stopped") == state.count("started") > 0


async def test_program_that_the_stack_lost_is_named_and_what_began_is_there_to_be_judged():
    running, found = storm_of(10**6, fault(nothing), client=Client(lost="7"))
    async with asyncio.timeout(20):
        ended = await running.run()
    ((promise, text),) = found.wrong
    assert promise is Promise.END
    assert "program 7 was given up" in text
    assert "there is none" in text
    assert found.endless == ["7"]
    assert 0 < len(ended) == found.accepted - 1


async def test_every_program_without_an_end_is_named_and_none_begins_after_them(monkeypatch):
    monkeypatch.setattr(storm, "_STUCK_SECONDS", 0.1)
    running, found = storm_of(10**6, fault(nothing), client=Client(ends=False))
    async with asyncio.timeout(20):
        assert await running.run() == []
    assert sorted(found.endless) == ["0", "1", "2", "long0"]
    assert len(found.wrong) == 4


async def test_progress_is_told(monkeypatch):
    monkeypatch.setattr(storm, "_TOLD_SECONDS", 0.05)
    said = []
    running, _ = storm_of(30, fault(nothing), said=said)
    await running.run()
    assert any("of 30 ended in" in line for line in said)
