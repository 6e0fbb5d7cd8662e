"""However a run ends, nothing of it is left: looked up on the host, never asked of the sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from docker import APIClient

from crucible_executor.engines.base import Engine
from crucible_executor.engines.registry import Host
from crucible_executor.model import Exited, Killed
from tests.cgroup_tree import cgroups
from tests.conformance.harness import (
    LIMITS,
    Recorder,
    eventually,
    processes_named,
    processes_of,
    python,
    run,
    sandbox_class,
)
from tests.conformance.promises import GUISES, NEED_DOCKER

TREE = (
    "import os, time, signal\n"
    "for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n"
    "os.fork(); os.fork()\n"
    "if os.fork() == 0: os.setsid()\n"
    "print('up', flush=True)\ntime.sleep(60)"
)
DAEMON = (
    "import os, time\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        for fd in range(3): os.close(fd)\n"
    "        time.sleep(60)\n"
    "    os._exit(0)\n"
    "os.wait(); print('left')"
)


@pytest.mark.alone
async def test_kill_ends_the_whole_process_tree_within_a_second(engine: Engine):
    sandbox = await engine.create(sandbox_class(LIMITS))
    sink = Recorder()
    running = asyncio.create_task(sandbox.start(python(TREE), LIMITS, sink))
    try:
        await sink.until_printed(b"up\n")
        assert processes_of(sandbox) != []
        before = time.monotonic()
        await sandbox.kill()
        assert time.monotonic() - before < 1
        assert processes_of(sandbox) == []
        assert (await running).termination == Killed()
        await sandbox.kill()
    finally:
        await sandbox.destroy()


async def test_cancelled_start_leaves_no_process(engine: Engine):
    sandbox = await engine.create(sandbox_class(LIMITS))
    sink = Recorder()
    running = asyncio.create_task(sandbox.start(python(TREE), LIMITS, sink))
    try:
        await sink.until_printed(b"up\n")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert processes_of(sandbox) == []
    finally:
        await sandbox.destroy()


async def test_daemon_left_behind_is_gone_when_the_run_has_ended(engine: Engine):
    # `run` looks for processes of the sandbox on the host after `start` has returned.
    result = await run(engine, python(DAEMON))
    assert (result.termination, result.stdout) == (Exited(0), b"left\n")


async def test_daemon_that_holds_the_output_does_not_keep_the_run_alive(engine: Engine):
    before = time.monotonic()
    result = await run(engine, python("import os, time\nif os.fork() == 0: time.sleep(60)\nprint('done')"))
    assert (result.termination, result.stdout) == (Exited(0), b"done\n")
    assert time.monotonic() - before < 10


async def test_program_that_makes_its_starter_its_tracer_is_not_taken_for_ended(engine: Engine):
    """PTRACE_TRACEME needs nobody's consent; whoever then waits for the program is told of its stops too."""
    code = (
        "import ctypes, os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))\n"
        "ctypes.CDLL(None).ptrace(0, 0, 0, 0)\nos.kill(os.getpid(), signal.SIGUSR1)\nraise SystemExit(5)"
    )
    result = await run(engine, python(code))
    assert (result.termination, result.stdout) == (Exited(5), b"handled\n")


async def test_orphans_do_not_change_how_the_program_ended(engine: Engine):
    code = "import os\nif os.fork() == 0:\n    if os.fork() == 0: os._exit(3)\n    os._exit(4)\nos.wait(); os._exit(5)"
    assert (await run(engine, python(code))).termination == Exited(5)


async def test_start_after_kill_runs_nothing(engine: Engine):
    sandbox = await engine.create(sandbox_class(LIMITS))
    sink = Recorder()
    try:
        await sandbox.kill()
        assert (await sandbox.start(python("print('ran')"), LIMITS, sink)).termination == Killed()
    finally:
        await sandbox.destroy()
    assert (sink.starts, sink.stdout) == (0, b"")


async def test_a_sandbox_takes_one_program_only(engine: Engine):
    sandbox = await engine.create(sandbox_class(LIMITS))
    try:
        await sandbox.start(python("pass"), LIMITS, Recorder())
        with pytest.raises(RuntimeError):
            await sandbox.start(python("pass"), LIMITS, Recorder())
    finally:
        await sandbox.destroy()


async def test_destroy_can_be_repeated_and_removes_an_unused_sandbox(engine: Engine):
    sandbox = await engine.create(sandbox_class(LIMITS))
    await sandbox.destroy()
    await sandbox.destroy()
    assert processes_of(sandbox) == []
    with pytest.raises(RuntimeError):
        await sandbox.start(python("pass"), LIMITS, Recorder())


async def test_destroy_during_a_run_ends_it(engine: Engine):
    sandbox = await engine.create(sandbox_class(LIMITS))
    sink = Recorder()
    running = asyncio.create_task(sandbox.start(python(TREE), LIMITS, sink))
    await sink.until_printed(b"up\n")
    await sandbox.destroy()
    assert (await running).termination == Killed()
    assert processes_of(sandbox) == []


@pytest.mark.alone  # files that the tests before it left may be closed meanwhile
async def test_many_runs_leave_no_descriptor_and_no_folder(engine: Engine, host: Host, engine_name: str):
    await run(engine, python("pass"))
    folder = host.run_dir / GUISES.get(engine_name, engine_name)
    gc.collect()  # an HTTP client's answers close their connections when they are collected
    before = (len(entries(Path("/proc/self/fd"))), entries(folder))
    for _ in range(8 if engine_name in NEED_DOCKER else 20):
        assert (await run(engine, python("print('x')"))).stdout == b"x\n"
    gc.collect()
    assert (len(entries(Path("/proc/self/fd"))), entries(folder)) == before


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder)) if folder.exists() else []


def traces(host: Host, engine_name: str, name: str) -> list[str]:
    """Where on the host a sandbox can still be seen."""
    folder = host.run_dir / GUISES.get(engine_name, engine_name) / name
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    groups = [str(one) for one in cgroups() if (one.parent.name, one.name) == (host.cgroup, name)]
    found = [*([str(folder)] if folder.exists() else []), *mounted, *groups, *processes_named(name)]
    if engine_name in NEED_DOCKER:
        with contextlib.closing(APIClient(base_url=host.docker_host)) as client:
            found += [one["Id"] for one in client.containers(all=True, filters={"id": name})]
    return found


async def start_owner(engine_name: str, host: Host) -> tuple[asyncio.subprocess.Process, str]:
    """A process that holds one running sandbox, and the sandbox's id."""
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.conformance.owner", engine_name,
        str(host.runsc), str(host.init_dir), str(host.images), str(host.run_dir), host.cgroup, host.docker_host,
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert owner.stdout is not None
    line = await asyncio.wait_for(owner.stdout.readline(), 30)
    return owner, line.decode().strip()


async def test_sandbox_dies_with_the_executor_and_sweep_removes_the_rest(engine: Engine, engine_name: str, host: Host):
    owner, name = await start_owner(engine_name, host)
    assert processes_named(name) != []
    owner.kill()
    await owner.wait()
    # Nobody sweeps yet: what runs must end by itself, because its executor is gone.
    await eventually(lambda: processes_named(name) == [], 5)
    assert traces(host, engine_name, name) != []
    assert await engine.sweep() == 1
    assert traces(host, engine_name, name) == []
    assert await engine.sweep() == 0


async def test_sweep_ends_what_still_runs_and_spares_its_own(engine: Engine, engine_name: str, host: Host):
    owner, name = await start_owner(engine_name, host)
    own = await engine.create(sandbox_class(LIMITS))
    try:
        os.kill(owner.pid, signal.SIGSTOP)  # an executor that hangs keeps its sandbox running
        assert await engine.sweep() == 1
        assert processes_named(name) == []
        assert (await own.start(python("print('spared')"), LIMITS, sink := Recorder())).termination == Exited(0)
        assert sink.stdout == b"spared\n"
    finally:
        await own.destroy()
        owner.kill()
        await owner.wait()
