"""A Docker daemon that is killed closes its engine, and one that is back opens it; no program goes on meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
from prometheus_client import CollectorRegistry

from crucible_deploy import docker_daemon
from crucible_executor import breaker
from crucible_executor.breaker import OPEN_AFTER
from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.engines.guarded import GuardedEngine
from crucible_executor.engines.registry import ENGINES, Host
from crucible_executor.metrics import EngineMetrics
from crucible_executor.model import SandboxFailed
from tests.conformance.harness import LIMITS, Recorder, eventually, processes_of, python, run, sandbox_class
from tests.conformance.promises import Promise, needs, only

pytestmark = [
    needs(Promise.DOCKER),
    only("docker", why="Tried with `docker` alone: what is tried is slow, and the same code for both."),
]


async def test_a_killed_daemon_closes_the_engine_until_it_is_back(
    engine_name: str, host: Host, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(breaker, "_FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(breaker, "_LONGEST_PAUSE_S", 0.5)
    with docker_daemon.running(host.runsc) as daemon:
        own = dataclasses.replace(host, docker_host=daemon.address)
        engine = GuardedEngine(ENGINES[engine_name](own), EngineMetrics(CollectorRegistry()))
        await engine.check()
        sandbox = await engine.create(sandbox_class(LIMITS))
        sink = Recorder()
        program = python("import time; print('up', flush=True); time.sleep(60)")
        running = asyncio.create_task(sandbox.start(program, LIMITS, sink))
        await sink.until_printed(b"up\n")
        daemon.kill()
        assert isinstance((await asyncio.wait_for(running, 20)).termination, SandboxFailed)
        assert processes_of(sandbox) == []
        await sandbox.destroy()
        for _ in range(OPEN_AFTER):
            with pytest.raises(EngineUnavailableError, match=r"docker|Docker"):
                await engine.create(sandbox_class(LIMITS))
        await eventually(lambda: engine.failing != "", 30)
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(EngineUnavailableError, match="tried again by itself"):
                await engine.create(sandbox_class(LIMITS))
        assert time.monotonic() - began < 0.5
        daemon.start()
        await eventually(lambda: engine.failing == "", 30)
        assert (await run(engine, python("print('back')"))).stdout == b"back\n"
        await engine.close()
