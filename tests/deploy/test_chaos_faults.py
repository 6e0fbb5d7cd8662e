"""The executor that is cut off is judged by a program that would still run, and by nothing else."""

import asyncio
import random
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest

from crucible_deploy.chaos import faults
from crucible_deploy.chaos.faults import Scene, cut_off
from crucible_deploy.chaos.judge import Promise
from crucible_deploy.stack import Leases

GRACE = timedelta(seconds=0.2)


class Sandboxes:
    """Those that live: a watcher, and the runsc that knows what they were given."""

    def __init__(self):
        self.alive = {}
        self.spans = {}
        self.looks = 0

    def begin(self, name, mark, *, age=0.0):
        self.alive[name] = mark
        self.spans[name] = (time.monotonic() - age, time.monotonic())

    def living(self):
        self.looks += 1
        return set(self.alive)

    def mark(self, sandbox):
        return self.alive.get(sandbox)


@pytest.fixture
def sandboxes(monkeypatch):
    monkeypatch.setattr(faults, "_KILL_SECONDS", 0.3)
    monkeypatch.setattr(faults, "_SPARE_SECONDS", 5.0)
    monkeypatch.setattr(faults, "_ALIVE_SECONDS", 0.5)
    return Sandboxes()


@asynccontextmanager
async def worker():
    """A real process that can be paused."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        yield SimpleNamespace(pid=lambda name: {"worker": process.pid}[name])
    finally:
        process.kill()
        await process.wait()


async def cut(sandboxes, begin):
    """What the fault says of a stack in which `begin` happens when it asks for a program."""
    asked = []

    def begins(seconds):
        asked.append(seconds)
        begin()
        return "met0"

    async with worker() as stack, asyncio.timeout(30):
        scene = Scene(stack, sandboxes, sandboxes, Leases(GRACE / 2, GRACE), begins)
        wrong = await cut_off().happen(scene, random.Random(1))
    assert len(asked) == 1
    assert asked[0] > GRACE.total_seconds() + 0.3
    assert {one.promise for one in wrong} <= {Promise.GRACE}
    return [one.text for one in wrong]


def later(call):
    """Within the silence of the worker, well before the look."""
    asyncio.get_running_loop().call_later(0.15, call)


async def test_program_that_is_dead_when_the_grace_has_passed_keeps_the_promise(sandboxes):
    def begin():
        sandboxes.begin("s1", "met0")
        later(sandboxes.alive.clear)

    assert await cut(sandboxes, begin) == []


async def test_program_that_outlives_the_grace_breaks_the_promise(sandboxes):
    assert await cut(sandboxes, lambda: sandboxes.begin("s1", "met0")) == ["sandbox s1 outlived its worker"]


async def test_any_other_that_outlives_the_grace_breaks_the_promise(sandboxes):
    def begin():
        sandboxes.begin("s0", "7")
        sandboxes.begin("s1", "met0")
        later(lambda: sandboxes.alive.pop("s1"))

    assert await cut(sandboxes, begin) == ["sandbox s0 outlived its worker"]


async def test_what_met_no_program_of_its_own_is_no_proof(sandboxes):
    (told,) = await cut(sandboxes, lambda: sandboxes.begin("s0", "7"))
    assert "could not be judged" in told
    assert "program met0 was not seen alive" in told


async def test_program_that_was_gone_before_the_worker_was_paused_is_no_proof(sandboxes, monkeypatch):
    sandboxes.begin("s1", "met0")

    def goes_after_the_first_look():
        sandboxes.looks += 1
        return set(sandboxes.alive) if sandboxes.looks == 1 else set()

    monkeypatch.setattr(sandboxes, "living", goes_after_the_first_look)
    (told,) = await cut(sandboxes, lambda: None)
    assert "gone before its worker was paused" in told


async def test_program_that_may_have_ended_by_itself_is_no_proof(sandboxes):
    def begin():
        sandboxes.begin("s1", "met0", age=6.0)
        later(sandboxes.alive.clear)

    (told,) = await cut(sandboxes, begin)
    assert "may have ended by itself" in told
