"""What only an engine on a Docker daemon can meet: a daemon that hangs, images that vanish, a file that is the init."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from docker import APIClient

from crucible_executor import dockerd
from crucible_executor.catalog import Catalog, checked
from crucible_executor.docker_images import REPOSITORY
from crucible_executor.engines import docker
from crucible_executor.engines.base import Engine, EngineUnavailableError
from crucible_executor.engines.registry import ENGINES, Host
from crucible_executor.model import Exited, Limit, LimitExceeded, SandboxFailed
from crucible_executor.readiness import Readiness
from tests.conformance.harness import LIMITS, Recorder, eventually, limits, processes_of, python, run, sandbox_class
from tests.conformance.promises import Promise, needs, only

pytestmark = [needs(Promise.DOCKER)]

ONE_IS_ENOUGH = only("docker", why="Tried with `docker` alone: what is tried is slow, and the same code for both.")


@contextlib.contextmanager
def stopped(address: str) -> Iterator[None]:
    """dockerd and its containerd do nothing meanwhile."""
    folder = Path(address.removeprefix("unix://")).parent / "1"  # of its first start
    pids = [int((folder / file).read_text()) for file in ("pid", "exec/containerd/containerd.pid")]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dockerd, docker):
        monkeypatch.setattr(module, "PING_S", 1.0)
    monkeypatch.setattr(docker.DockerSandbox, "destroy_limit_s", 1.0)


@ONE_IS_ENOUGH
async def test_a_daemon_that_hangs_keeps_no_program_alive_and_its_container_goes_later(
    engine: Engine, engine_name: str, host: Host, impatient
):
    sandbox = await engine.create(sandbox_class(LIMITS))
    sink = Recorder()
    program = python("import time; print('up', flush=True); time.sleep(60)")
    running = asyncio.create_task(sandbox.start(program, limits(wall_time=timedelta(seconds=2)), sink))
    await sink.until_printed(b"up\n")
    with stopped(host.docker_host):
        outcome = await asyncio.wait_for(running, 15)
        assert outcome.termination == SandboxFailed("dockerd did not pass on all of the container's output.")
        assert processes_of(sandbox) == []
        with pytest.raises(EngineUnavailableError, match="answer"):
            await ENGINES[engine_name](host).check()
        await asyncio.wait_for(sandbox.destroy(), 10)
    with contextlib.closing(APIClient(base_url=host.docker_host)) as client:
        # The daemon still finds the request to remove it in its socket.
        await eventually(lambda: client.containers(all=True, filters={"id": sandbox.id}) == [], 20)
    assert await ENGINES[engine_name](host).sweep() == 0


class Stalling(Recorder):
    """The executor stands still from the program's start until `gone`, and so reads no counter and misses no event."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        super().__init__()
        self._gone = gone

    def started(self) -> None:
        super().started()
        deadline = time.monotonic() + 20
        while not self._gone():
            assert time.monotonic() < deadline
            time.sleep(0.01)


ALL_GO_TOGETHER = only("docker-gvisor", why="With `docker` the init outlives its program, and so its cgroup.")


@ALL_GO_TOGETHER
async def test_memory_that_ran_out_is_the_cause_also_when_the_cgroup_was_gone_before_anybody_looked(
    engine: Engine,
):
    sandbox = await engine.create(sandbox_class(limits(memory_bytes=96 << 20)))
    hungry = python("hog = []\nwhile True: hog.append(bytearray(b'x' * 4_000_000))")
    outcome = await sandbox.start(hungry, limits(memory_bytes=96 << 20), Stalling(lambda: not sandbox._cgroup.exists))
    await sandbox.destroy()
    assert isinstance(outcome.termination, LimitExceeded)
    assert outcome.termination.limit is Limit.MEMORY
    assert "its cgroup's OOM event" in outcome.termination.evidence
    assert outcome.usage.peak_memory_bytes is None  # nothing was there to be read any more


@ALL_GO_TOGETHER
async def test_a_container_that_something_else_killed_did_not_run_out_of_memory(engine: Engine):
    sandbox = await engine.create(sandbox_class(LIMITS))

    def killed_and_gone() -> bool:
        for pid in sandbox._cgroup.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not sandbox._cgroup.exists

    outcome = await sandbox.start(python("import time; time.sleep(60)"), LIMITS, Stalling(killed_and_gone))
    await sandbox.destroy()
    assert isinstance(outcome.termination, SandboxFailed)


@ONE_IS_ENOUGH
async def test_a_daemon_that_is_started_later_is_offered_then(engine_name: str, host: Host, tmp_path: Path):
    late = tmp_path / "socket"
    engine = ENGINES[engine_name](dataclasses.replace(host, docker_host=f"unix://{late}"))
    offers = Catalog([await checked(engine)], [], "gvisor")
    assert "is it running" in offers.engines[engine_name].unavailable
    readiness = Readiness(offers, lambda engines: [], lambda why: asyncio.sleep(0), first_pause_s=0.2)
    await readiness.begin()
    late.symlink_to(host.docker_host.removeprefix("unix://"))
    await eventually(lambda: not offers.engines[engine_name].unavailable, 60)
    await readiness.end()
    assert (await run(engine, python("print('there')"))).stdout == b"there\n"


@ONE_IS_ENOUGH
async def test_an_image_that_somebody_removed_from_docker_is_imported_again(engine: Engine, host: Host):
    await run(engine, python("pass"))
    with contextlib.closing(APIClient(base_url=host.docker_host)) as client:
        for image in client.images(REPOSITORY):
            client.remove_image(image["Id"], force=True)
        assert (await run(engine, python("print('again')"))).stdout == b"again\n"
        assert len(client.images(REPOSITORY)) == 1
        assert (await run(engine, python("pass"))).termination == Exited(0)
        assert len(client.images(REPOSITORY)) == 1


async def test_program_cannot_reach_the_inits_own_file(engine: Engine):
    code = (
        "import os\n"
        "for at in ('/.crucible', '/.crucible/init'):\n"
        "    try: os.listdir(at); print('listed')\n    except OSError as e: print(e.errno)\n"
        "    try: open(at).close(); print('opened')\n    except OSError as e: print(e.errno)"
    )
    assert (await run(engine, python(code))).stdout.split() == [b"13"] * 4


async def test_program_can_open_its_own_standard_streams(engine: Engine):
    code = "open('/dev/stdout', 'w').write('out\\n'); open('/dev/stderr', 'w').write('err\\n')"
    result = await run(engine, python(code))
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


async def test_containers_of_another_owner_are_spared(engine: Engine, engine_name: str, host: Host):
    sandbox = await engine.create(sandbox_class(LIMITS))
    try:
        other = dataclasses.replace(host, cgroup=f"{host.cgroup}-other")
        assert await ENGINES[engine_name](other).sweep() == 0
        assert (await sandbox.start(python("print('here')"), LIMITS, sink := Recorder())).termination == Exited(0)
        assert sink.stdout == b"here\n"
    finally:
        await sandbox.destroy()


async def test_a_cancelled_creation_leaves_no_container(engine: Engine):
    await run(engine, python("pass"))  # the image is there
    for delay in (0, 0.01, 0.05, 0.1, 0.2, 0.3):  # at any point: before the container, before its start, after it
        creating = asyncio.create_task(engine.create(sandbox_class(LIMITS)))
        await asyncio.sleep(delay)
        creating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await asyncio.wait_for(creating, 20)).destroy()  # a fast machine may have been faster
    assert await engine.sweep() == 0
