"""The pool's own rules, over an engine that boots nothing: what it keeps, when it boots, and when it gives up."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable, Hashable
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from crucible_executor.breaker import Breaker
from crucible_executor.demand import Demand
from crucible_executor.engines.base import Capabilities, EngineUnavailableError, HoldableEngine, HoldableSandbox, Sink
from crucible_executor.engines.pooled import PooledEngine, PoolSettings, idle_cpu_seconds
from crucible_executor.metrics import PoolMetrics
from crucible_executor.model import Interpreter, Isolation, Limits, Outcome, Program, SandboxClass, StartKind

pytestmark = pytest.mark.slow

SETTINGS = PoolSettings(size=2, memory_bytes=1 << 30, idle=timedelta(minutes=1), slots=2)
CLASS = SandboxClass("image", 64 << 20, 1 << 20, None, 1, 16)
WAITS = dataclasses.replace(CLASS, interpreter=Interpreter(("python3", "main.py"), (), "main.py", 16, 64))


class FakeSandbox(HoldableSandbox):
    """Notes what is done with it."""

    def __init__(self, engine: FakeEngine, number: int) -> None:
        self.engine = engine
        self.held: list[Interpreter | None] = []
        self.taken: list[SandboxClass] = []
        self.destroyed = False
        self._number = number
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def id(self) -> str:
        return f"s{self._number}"

    @property
    def ended(self) -> asyncio.Future[int]:
        return self._ended

    def die(self) -> None:
        self._ended.set_result(-9)

    async def hold(self, interpreter: Interpreter | None) -> None:
        if self.engine.hold_fails:
            raise EngineUnavailableError("it does not hold")
        self.held.append(interpreter)

    def take(self, sandbox_class: SandboxClass) -> None:
        if self._ended.done() or self.engine.take_fails:
            raise EngineUnavailableError("it is broken")
        self.taken.append(sandbox_class)

    def memory_bytes(self) -> int:
        return self.engine.memory_bytes

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        raise NotImplementedError

    async def kill(self) -> None:
        raise NotImplementedError

    async def destroy(self) -> None:
        self.destroyed = True


class FakeEngine(HoldableEngine):
    """Makes `FakeSandbox`es."""

    def __init__(self) -> None:
        self.made: list[FakeSandbox] = []
        self.fails = self.hold_fails = self.take_fails = False
        self.memory_bytes = 1 << 20
        self.closed = False
        self.attempts = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("fake", "1", Isolation.NONE, frozenset())

    async def check(self) -> None:
        return None

    def fixed_at_boot(self, sandbox_class: SandboxClass) -> Hashable:
        return sandbox_class.image_digest, sandbox_class.disk_bytes

    async def create(self, sandbox_class: SandboxClass) -> FakeSandbox:
        self.attempts += 1
        if self.fails:
            raise EngineUnavailableError("no room")
        self.made.append(FakeSandbox(self, len(self.made)))
        return self.made[-1]

    async def sweep(self) -> int:
        return 0

    async def close(self) -> None:
        self.closed = True


class Machine:
    """Its CPUs: idle ones as a test says."""

    def __init__(self) -> None:
        self.idle_cpus = 0.0

    def idle_cpu_s(self) -> float:
        return asyncio.get_running_loop().time() * self.idle_cpus


@dataclasses.dataclass
class World:
    inner: FakeEngine
    machine: Machine
    registry: CollectorRegistry
    make: Callable[..., PooledEngine]

    def value(self, name: str) -> float | None:
        return self.registry.get_sample_value(f"crucible_executor_pool_{name}", {"engine": "fake"})


@pytest.fixture
async def world() -> AsyncIterator[World]:
    inner, machine, registry = FakeEngine(), Machine(), CollectorRegistry()
    made: list[PooledEngine] = []

    def make(**changes: object) -> PooledEngine:
        settings = dataclasses.replace(SETTINGS, **changes)
        made.append(PooledEngine(inner, settings, PoolMetrics(registry), machine.idle_cpu_s))
        return made[-1]

    yield World(inner, machine, registry, make)
    for pool in made:
        await pool.close()
    assert inner.closed


async def until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  # what is waited for are counts
            await asyncio.sleep(0.005)


async def used(pool: PooledEngine, sandbox_class: SandboxClass = CLASS) -> StartKind:
    sandbox = await pool.create(sandbox_class)
    await sandbox.destroy()
    return sandbox.start_kind


async def test_first_is_a_miss_then_the_pool_fills_and_hits(world: World):
    pool = world.make()
    assert await used(pool) is StartKind.COLD
    await until(lambda: pool.waiting == 2)
    assert await used(pool) is StartKind.WARM
    await until(lambda: pool.waiting == 2)
    assert (world.value("hits_total"), world.value("misses_total"), world.value("size")) == (1, 1, 2)
    assert world.value("memory_bytes") == 2 << 20


async def test_no_sandbox_is_given_out_twice(world: World):
    pool = world.make()
    seen = []
    for _ in range(20):
        sandbox = await pool.create(CLASS)
        seen.append(sandbox.id)
        await sandbox.destroy()
        await until(lambda: pool.waiting > 0)
    assert len(set(seen)) == 20
    assert all(one.destroyed for one in world.inner.made if one.taken)
    assert max(len(one.taken) for one in world.inner.made) == 1


async def test_limits_of_the_one_who_takes_it_are_set_and_no_part_of_the_kind(world: World):
    pool = world.make()
    await used(pool)
    await until(lambda: pool.waiting == 2)
    other = dataclasses.replace(CLASS, memory_bytes=1 << 30, cpus=2, processes=99)
    assert await used(pool, other) is StartKind.WARM
    assert [one.taken for one in world.inner.made if one.taken] == [[other]]
    assert await used(pool, dataclasses.replace(CLASS, disk_bytes=5)) is StartKind.COLD


async def test_interpreter_is_started_ahead_for_what_came_before_and_else_the_init_waits(world: World):
    pool = world.make()
    await used(pool, WAITS)
    await until(lambda: pool.waiting == 2)
    assert [one.held for one in world.inner.made[1:]] == [[None], [None]]
    assert await used(pool, WAITS) is StartKind.WARM
    await until(lambda: [WAITS.interpreter] in [one.held for one in world.inner.made])
    before = len(world.inner.made)
    assert await used(pool, WAITS) is StartKind.WARM
    taken = [one for one in world.inner.made[:before] if one.taken]
    assert taken[-1].held == [WAITS.interpreter]


async def test_nothing_is_booted_while_all_cpus_are_busy(world: World):
    pool = world.make()
    running = await pool.create(CLASS)
    await asyncio.sleep(0.4)
    assert pool.waiting == 0
    world.machine.idle_cpus = 1.0
    await until(lambda: pool.waiting == 2)
    await running.destroy()


async def test_nothing_is_booted_while_all_slots_are_taken(world: World):
    pool = world.make()
    world.machine.idle_cpus = 2.0
    running = [await pool.create(CLASS), await pool.create(CLASS)]
    await asyncio.sleep(0.4)
    assert pool.waiting == 0
    await running.pop().destroy()
    await until(lambda: pool.waiting == 2)
    await running.pop().destroy()


async def test_memory_bounds_how_many_wait(world: World):
    pool = world.make(memory_bytes=40 << 20)
    world.inner.memory_bytes = 30 << 20
    await used(pool)
    await until(lambda: pool.waiting == 1)
    await asyncio.sleep(0.3)
    assert pool.waiting == 1


async def test_class_that_nobody_asks_for_is_given_up(world: World):
    pool = world.make(idle=timedelta(seconds=0.5))
    await used(pool)
    await until(lambda: pool.waiting == 2)
    await until(lambda: pool.waiting == 0)
    await until(lambda: all(one.destroyed for one in world.inner.made))
    assert world.value("size") == 0


async def test_new_class_takes_the_place_of_an_old_one(world: World):
    pool = world.make()
    await used(pool)
    await until(lambda: pool.waiting == 2)
    other = dataclasses.replace(CLASS, disk_bytes=5)
    for _ in range(40):  # by then nothing else was asked for lately
        await used(pool, other)
    await until(lambda: pool.waiting == 2 and world.inner.made[1].destroyed and world.inner.made[2].destroyed)
    assert await used(pool, other) is StartKind.WARM


async def test_broken_one_that_waits_is_noticed_and_replaced(world: World):
    pool = world.make()
    await used(pool)
    await until(lambda: pool.waiting == 2)
    broken = world.inner.made[1]
    broken.die()
    await until(lambda: broken.destroyed)
    assert pool.waiting == 1
    await until(lambda: pool.waiting == 2)
    assert world.value("failures_total") == 1


async def test_one_that_cannot_be_taken_is_a_miss_and_removed(world: World):
    pool = world.make()
    await used(pool)
    await until(lambda: pool.waiting == 2)
    world.inner.take_fails = True
    assert await used(pool) is StartKind.COLD
    await until(lambda: world.inner.made[1].destroyed and world.inner.made[2].destroyed)


@pytest.mark.parametrize("what", ["fails", "hold_fails"])
async def test_repeated_failure_opens_the_breaker_instead_of_spinning(world: World, what: str):
    pool = world.make()
    await used(pool)
    setattr(world.inner, what, True)
    await until(lambda: world.value("breaker_open") == 1)
    attempts = world.inner.attempts
    await asyncio.sleep(0.5)
    assert world.inner.attempts == attempts
    assert world.value("failures_total") == 3
    setattr(world.inner, what, False)
    await until(lambda: pool.waiting == 2)
    assert world.value("breaker_open") == 0
    assert all(one.destroyed for one in world.inner.made[:-2])


async def test_close_removes_what_waits_and_keeps_nothing_afterwards(world: World):
    pool = world.make()
    await used(pool)
    await until(lambda: pool.waiting == 2)
    await pool.close()
    assert pool.waiting == 0
    assert all(one.destroyed for one in world.inner.made)
    assert await used(pool) is StartKind.COLD
    await asyncio.sleep(0.3)
    assert pool.waiting == 0


def test_breaker_doubles_its_pause_up_to_a_minute_and_forgets():
    breaker = Breaker()
    assert not breaker.is_open(0)
    now, pauses = 10.0, []
    for _ in range(12):
        breaker.failed(now)
        pauses.append(breaker.retry_at() - now)
        now = breaker.retry_at()
    assert pauses[:4] == [0.5, 1, 2, 4]
    assert pauses[-1] == 60
    assert breaker.failed(now + 500) is False
    assert breaker.retry_at() == now + 500.5


def test_targets_follow_the_last_requests_and_never_exceed_the_size():
    demand: Demand[str] = Demand(4, 60)
    assert demand.targets(0) == {}
    demand.asked("a", 1)
    assert demand.targets(2) == {"a": 4}
    for moment in range(2, 5):
        demand.asked("b", moment)
    assert demand.targets(5) == {"b": 4}
    demand.asked("a", 4)
    assert demand.targets(5) == {"b": 2, "a": 2}
    assert demand.next_change() == 64
    assert demand.targets(63.5) == {"b": 2, "a": 2}
    demand.asked("b", 63.5)
    assert demand.targets(64) == {"b": 4}
    for number, moment in zip("cdefgh", itertools.count(62)):
        demand.asked(number, moment)
    assert demand.targets(68) == {"b": 4}, "what came once may never come again"
    for moment in range(70, 90):
        for kind in "cdefgh":
            demand.asked(kind, moment)
    targets = demand.targets(90)
    assert sum(targets.values()) == 4
    assert set(targets.values()) <= {0, 1}


def test_idle_time_of_this_machine_goes_up():
    assert idle_cpu_seconds() > 0
