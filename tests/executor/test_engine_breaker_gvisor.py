"""runsc that is gone, hangs or answers rubbish closes the engine; what runs already is not disturbed; it comes back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from crucible_executor import breaker, cgroups
from crucible_executor.breaker import OPEN_AFTER
from crucible_executor.engines import gvisor
from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.engines.guarded import GuardedEngine
from crucible_executor.engines.gvisor import GvisorEngine, GvisorPaths
from crucible_executor.images import ImageStore
from crucible_executor.metrics import EngineMetrics
from crucible_executor.model import Exited
from tests.conformance.harness import LIMITS, Recorder, eventually, processes_named, python, run, sandbox_class

pytestmark = pytest.mark.root

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]

BROKEN = {
    "gone": None,
    "fails": "#!/bin/sh\necho 'the kernel is too old' >&2\nexit 1\n",
    "answers rubbish": "#!/bin/sh\nhead -c 100000 /dev/urandom\nhead -c 100000 /dev/urandom >&3\nexit 0\n",
    "hangs": "#!/bin/sh\nexec sleep 60\n",
}


@dataclass
class Machine:
    """An engine whose runsc can be taken away and given back."""

    runsc: Path
    run_dir: Path
    engine: GuardedEngine

    def replace(self, script: str | None) -> None:
        """Puts something else where runsc is; None: nothing."""
        self.runsc.unlink()
        if script is not None:
            self.runsc.write_text(script)
            self.runsc.chmod(0o755)

    def mend(self) -> None:
        """Puts the real one back, in one step."""
        made = self.runsc.with_name("new")
        made.symlink_to(real_runsc())
        made.replace(self.runsc)


def real_runsc() -> Path:
    return sorted((CACHE / "runsc").glob("*/runsc"))[-1]


@pytest.fixture(scope="module")
def init_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = subprocess.run(
        [ROOT / "executor/init/build.sh", tmp_path_factory.mktemp("init")], check=True, capture_output=True, text=True
    )
    return Path(built.stdout.strip())


@pytest.fixture
async def machine(init_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    monkeypatch.setattr(gvisor, "_BOOT_LIMIT", timedelta(seconds=5))
    monkeypatch.setattr(gvisor, "VERSION_LIMIT_S", 1.0)
    monkeypatch.setattr(breaker, "_FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(breaker, "_LONGEST_PAUSE_S", 0.5)
    name = f"crucible-test-{uuid.uuid4().hex[:12]}"
    run_dir, runsc = Path("/dev/shm") / name, tmp_path / "runsc"
    runsc.symlink_to(real_runsc())
    tree = cgroups.detect(name)
    paths = GvisorPaths(runsc, init_dir / "crucible-init", init_dir / "crucible-launch", run_dir)
    inner = GvisorEngine(paths, ImageStore(CACHE / "images"), tree)
    made = Machine(runsc, run_dir, GuardedEngine(inner, EngineMetrics(CollectorRegistry())))
    await made.engine.check()
    yield made
    await made.engine.close()
    abandoned = await inner.sweep()
    tree.discard()
    for folder in (run_dir / "empty", run_dir):
        folder.rmdir()
    assert abandoned == 0


async def until(condition: Callable[[], bool]) -> None:
    await eventually(condition, 30)


@pytest.mark.parametrize("how", BROKEN)
async def test_a_broken_runsc_closes_the_engine_and_nothing_else(
    machine: Machine, how: str, monkeypatch: pytest.MonkeyPatch
):
    engine = machine.engine
    neighbour = await engine.create(sandbox_class(LIMITS))
    sink = Recorder()
    running = asyncio.create_task(
        neighbour.start(python("print('up', flush=True)\nimport sys\nprint(input())", stdin=b"fine\n"), LIMITS, sink)
    )
    waiting = await engine.create(sandbox_class(LIMITS))
    try:
        machine.replace(BROKEN[how])
        monkeypatch.setattr(gvisor, "_BOOT_LIMIT", timedelta(seconds=1))  # nothing comes up, however long one waits
        async with asyncio.timeout(30):
            while engine.failing == "":  # more than `OPEN_AFTER` when the neighbour ends well in between
                with pytest.raises(EngineUnavailableError):
                    await engine.create(sandbox_class(LIMITS))
                await asyncio.sleep(0.01)  # the trial has its turn
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(EngineUnavailableError, match="tried again by itself"):
                await engine.create(sandbox_class(LIMITS))
        assert time.monotonic() - began < 0.5
        assert (await running).termination == Exited(0)
        assert sink.stdout == b"up\nfine\n"
        late = Recorder()
        assert (await waiting.start(python("print('late')"), LIMITS, late)).termination == Exited(0)
        assert late.stdout == b"late\n"
        monkeypatch.setattr(gvisor, "_BOOT_LIMIT", timedelta(seconds=5))
        machine.mend()
        await until(lambda: engine.failing == "")
        assert (await run(engine, python("print('back')"))).stdout == b"back\n"
    finally:
        await neighbour.destroy()
        await waiting.destroy()
    await until(lambda: processes_named(machine.run_dir.name) == [])
    assert [entry.name for entry in os.scandir(machine.run_dir)] == ["empty"]


async def test_programs_that_no_sandbox_can_be_made_for_do_not_close_it(machine: Machine):
    bounds = LIMITS.__class__(**{**vars(LIMITS), "memory_bytes": -(26 << 20)})
    for _ in range(2 * OPEN_AFTER):
        with pytest.raises(EngineUnavailableError):
            await machine.engine.create(sandbox_class(bounds))
    await until(lambda: machine.engine._trial is None)
    assert machine.engine.failing == ""
    assert (await run(machine.engine, python("print('fine')"))).stdout == b"fine\n"
