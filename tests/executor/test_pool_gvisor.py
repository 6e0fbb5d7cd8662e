"""The pool over real sandboxes: frozen while they wait, fast when taken, gone whoever dies."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from crucible_executor import ahead, cgroups, leftovers
from crucible_executor.behaviour import Update
from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.engines.gvisor import GvisorEngine, GvisorPaths, GvisorSandbox
from crucible_executor.engines.pooled import PooledEngine, PoolSettings
from crucible_executor.images import ImageStore
from crucible_executor.metrics import PoolMetrics
from crucible_executor.model import Exited, File, Limits, Program, SandboxClass, StartKind, Stream
from crucible_executor.sampling import Sample
from crucible_executor.spool import Spool

pytestmark = pytest.mark.root

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(timedelta(seconds=20), None, 1, 128 << 20, 16, 64, 1 << 20, 1 << 20, None)
PROGRAM = Program(("/usr/bin/python3", "main.py"), (File("main.py", b"print('x')"),), {"PATH": "/bin:/usr/bin"}, b"")
WAITS = ahead.interpreter(PROGRAM, LIMITS, entrypoint="main.py", reads_whole_file=True)
CLASS = SandboxClass("python", 128 << 20, 1 << 20, None, 1, 16, WAITS)
IDLE_S = 1.0


class Output:
    def __init__(self) -> None:
        self.data = b""

    def started(self) -> None:
        pass

    def output(self, stream: Stream, data: bytes) -> None:
        self.data += data

    def ending(self) -> None:
        pass

    def tried(self, update: Update) -> None:
        pass

    def sampled(self, sample: Sample) -> None:
        pass

    def spool(self) -> Spool:
        raise NotImplementedError


@pytest.fixture(scope="module")
def init_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = subprocess.run(
        [ROOT / "executor/init/build.sh", tmp_path_factory.mktemp("init")], check=True, capture_output=True, text=True
    )
    return Path(built.stdout.strip())


@pytest.fixture
def paths(init_dir: Path) -> GvisorPaths:
    runsc = sorted((CACHE / "runsc").glob("*/runsc"))[-1]
    run_dir = Path("/dev/shm") / f"crucible-test-{uuid.uuid4().hex[:12]}"
    return GvisorPaths(runsc, init_dir / "crucible-init", init_dir / "crucible-launch", run_dir)


@pytest.fixture
async def engine(paths: GvisorPaths) -> AsyncIterator[GvisorEngine]:
    """On the test's own folder and cgroups; afterwards nothing may be left there."""
    tree = cgroups.detect(paths.run_dir.name)
    yield GvisorEngine(paths, ImageStore(CACHE / "images"), tree)
    left = await leftovers.sweep(paths.run_dir, tree, set())
    tree.discard()
    for folder in (paths.run_dir / "empty", paths.run_dir):
        if folder.exists():
            folder.rmdir()
    assert left == 0


async def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  # the kernel tells nobody
            await asyncio.sleep(0.01)


async def held(engine: GvisorEngine) -> GvisorSandbox:
    sandbox = await engine.create(CLASS)
    await sandbox.hold(WAITS)
    await until(sandbox.cgroup.frozen)
    return sandbox


async def test_frozen_sandbox_uses_no_cpu_time_and_little_memory(engine: GvisorEngine):
    sandbox = await held(engine)
    try:
        before = sandbox.cgroup.cpu_time()
        await asyncio.sleep(IDLE_S)
        assert sandbox.cgroup.cpu_time() - before == timedelta(0)
        assert 0 < sandbox.memory_bytes() < 64 << 20
    finally:
        await sandbox.destroy()


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo no site >&2; exit 3", "exited with code 3. It wrote 'no site'."), ("kill -11 $$", "signal 11 ended it.")],
)
async def test_interpreter_that_does_not_wait_is_said_to_have_ended_and_how(
    engine: GvisorEngine, script: str, said: str
):
    sandbox = await engine.create(CLASS)
    try:
        with pytest.raises(EngineUnavailableError, match=re.escape(said)):
            await sandbox.hold(dataclasses.replace(WAITS, command=("/bin/sh", "-c", script)))
    finally:
        await sandbox.destroy()


async def test_pool_gives_real_sandboxes_and_keeps_none_at_the_end(engine: GvisorEngine):
    settings = PoolSettings(size=2, memory_bytes=1 << 30, idle=timedelta(minutes=1), slots=2)
    pool = PooledEngine(engine, settings, PoolMetrics(CollectorRegistry()), lambda: 0.0)
    ids, kinds = set(), []
    try:
        for _ in range(4):
            sandbox = await pool.create(CLASS)
            try:
                output = Output()
                outcome = await sandbox.start(PROGRAM, LIMITS, output)
            finally:
                await sandbox.destroy()
            assert (outcome.termination, output.data) == (Exited(0), b"x\n")
            ids.add(sandbox.id)
            kinds.append(sandbox.start_kind)
            await until(lambda: pool.waiting == 2)
    finally:
        await pool.close()
    assert kinds == [StartKind.COLD, StartKind.WARM, StartKind.WARM, StartKind.WARM]
    assert len(ids) == 4


async def test_waiting_sandbox_that_dies_is_noticed(engine: GvisorEngine):
    settings = PoolSettings(size=1, memory_bytes=1 << 30, idle=timedelta(minutes=1), slots=2)
    pool = PooledEngine(engine, settings, PoolMetrics(CollectorRegistry()), lambda: 0.0)
    try:
        await pool.prepare(CLASS)
        (name,) = engine._alive
        await engine._alive[name].cgroup.kill()
        await until(lambda: pool.waiting == 0)
        await until(lambda: not engine._alive)
    finally:
        await pool.close()


OWNER = """
import asyncio, sys
from pathlib import Path
from tests.executor.test_pool_gvisor import held, CACHE
from crucible_executor import cgroups
from crucible_executor.engines.gvisor import GvisorEngine, GvisorPaths
from crucible_executor.images import ImageStore
async def main():
    paths = GvisorPaths(*map(Path, sys.argv[1:5]))
    kind = sys.argv[5]
    tree = cgroups.detect(paths.run_dir.name)
    if kind == "v1":
        tree = cgroups.CgroupTreeV1(cgroups.hierarchy.mounts(Path("/proc/self/mountinfo"))[0], paths.run_dir.name)
    engine = GvisorEngine(paths, ImageStore(CACHE / "images"), tree)
    sandboxes = [await held(engine) for _ in range(2)]
    print(len(sandboxes), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["detected", "v1"])
async def test_frozen_leftovers_of_a_killed_executor_are_swept(engine: GvisorEngine, paths: GvisorPaths, kind: str):
    """Also where a frozen process does not die of a signal (the freezer of v1)."""
    mounts, _ = cgroups.hierarchy.mounts(Path("/proc/self/mountinfo"))
    if kind == "v1" and "freezer" not in mounts:
        pytest.skip("this machine mounts no v1 freezer controller")
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(paths.runsc), str(paths.init), str(paths.launcher), str(paths.run_dir), kind,
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert owner.stdout is not None
    assert (await asyncio.wait_for(owner.stdout.readline(), 30)) == b"2\n"
    owner.kill()
    await owner.wait()
    if kind == "v1":
        tree = cgroups.CgroupTreeV1(mounts, paths.run_dir.name)
        assert any(group.pids() for group in tree.existing()), "frozen processes of v1 wait for the sweep"
        assert await leftovers.sweep(paths.run_dir, tree, set()) == 2
        tree.discard()
        return
    assert await engine.sweep() == 2
    assert await engine.sweep() == 0
