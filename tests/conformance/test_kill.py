"""Kill ends everything within a second, whatever the program does; seen from outside the sandbox."""

from __future__ import annotations

import asyncio
import time

import pytest

from crucible_executor.engines.base import Engine
from crucible_executor.model import Killed, Limit, Limits
from tests.conformance.harness import LIMITS, Recorder, limits, processes_of, python, sandbox_class
from tests.conformance.promises import needs

pytestmark = pytest.mark.alone

UP = "\nprint('up', flush=True)\n"


async def is_gone_within_a_second(engine: Engine, code: str, bounds: Limits = LIMITS) -> None:
    sandbox = await engine.create(sandbox_class(bounds))
    sink = Recorder()
    running = asyncio.create_task(sandbox.start(python(code), bounds, sink))
    try:
        await sink.until_printed(b"up\n")
        assert processes_of(sandbox) != []
        began = time.monotonic()
        await sandbox.kill()
        assert time.monotonic() - began < 1
        assert processes_of(sandbox) == []
        assert (await running).termination == Killed()
    finally:
        await sandbox.destroy()


async def test_a_program_that_ignores_every_signal_is_gone(engine: Engine):
    await is_gone_within_a_second(
        engine,
        "import signal, time\n"
        "for s in signal.valid_signals():\n"
        "    if s not in (9, 19): signal.signal(s, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())" + UP + "while True: time.sleep(60)",
    )


async def test_a_program_that_forks_twice_into_sessions_of_their_own_is_gone(engine: Engine):
    await is_gone_within_a_second(
        engine,
        "import os, time\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            os.setsid(); os.chdir('/'); time.sleep(60)\n"
        "        os._exit(0)\n"
        "    os.wait()" + UP + "time.sleep(60)",
    )


async def test_a_program_that_traces_its_children_is_gone(engine: Engine):
    await is_gone_within_a_second(
        engine,
        "import ctypes, os, signal, time\n"
        "ptrace = ctypes.CDLL(None).ptrace\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        ptrace(0, 0, 0, 0)\n"  # PTRACE_TRACEME
        "        os.kill(os.getpid(), signal.SIGTRAP)\n"  # stopped, and nobody ever lets it go on
        "        time.sleep(60)\n"
        "for _ in range(3): os.waitpid(-1, os.WUNTRACED)" + UP + "time.sleep(60)",
    )


async def test_a_program_that_stops_itself_is_gone(engine: Engine):
    await is_gone_within_a_second(
        engine,
        "import os, signal, time\n"
        "if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)\n"
        "os.waitpid(-1, os.WUNTRACED)" + UP + "os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)",
    )


async def test_a_program_that_fills_its_pipes_is_gone(engine: Engine):
    """Its output, which is read no faster than it is taken, and pipes of its own that nobody reads."""
    await is_gone_within_a_second(
        engine,
        "import os\nif os.fork() == 0:\n    r, w = os.pipe()\n    while True: os.write(w, b'x' * 65536)\n"
        + UP
        + "if os.fork() == 0:\n    while True: os.write(2, b'x' * 65536)\n"
        "while True: os.write(1, b'x' * 65536)",
        limits(output_bytes=1 << 40),
    )


@needs(Limit.PROCESSES)
async def test_a_program_that_forks_without_end_is_gone(engine: Engine):
    await is_gone_within_a_second(
        engine,
        "import os\nprint('up', flush=True)\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        limits(processes=16),
    )
