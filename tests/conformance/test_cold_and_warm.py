"""A program in a sandbox that was booted ahead sees what it sees in one that was booted for it, but for the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from crucible_executor.engines.base import Engine
from crucible_executor.engines.gvisor import GvisorEngine
from crucible_executor.engines.registry import Host
from crucible_executor.model import Exited, File, Limits, Program, StartKind
from tests.conformance import warm
from tests.conformance.conftest import remove
from tests.conformance.harness import ENVIRONMENT, LIMITS, PYTHON, Recorder, Result, limits, python, run, sandbox_class
from tests.conformance.promises import only

pytestmark = [pytest.mark.root, only("gvisor", why="It compares two guises of one engine.")]

# Everything that a process can be asked about itself and its surroundings. Addresses, times and random numbers differ
# between any two runs and are left out.
LOOK = r"""
import gc, json, os, resource, signal, stat, sys


def text(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")


def without_numbers(path, *names):
    return [line for line in text(path).splitlines() if not line.startswith(names)]


def links(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        try:
            found[name] = os.readlink(f"{folder}/{name}")
        except OSError as error:
            found[name] = str(error.errno)
    return found


def facts(at):
    s = os.lstat(at)
    return [at, oct(s.st_mode), s.st_ino, s.st_nlink, s.st_uid, s.st_gid, s.st_size, s.st_blocks]


fds = links("/proc/self/fd")
status = without_numbers("/proc/self/status", "Vm", "Rss", "voluntary", "nonvoluntary")
seen = {
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "flags": str(sys.flags),
    "path": sys.path,
    "modules": sorted(sys.modules),
    "importers": sorted((k, type(v).__name__) for k, v in sys.path_importer_cache.items()),
    "main": sorted(k for k in globals() if k.startswith("__")),
    "file": __file__,
    "spec": str(__spec__),
    "loader": type(__loader__).__name__,
    "depth": len(__import__("inspect").stack()),
    "environ": dict(os.environ),
    "order": list(os.environ),
    "proc environ": text("/proc/self/environ"),
    "cmdline": text("/proc/self/cmdline"),
    "comm": text("/proc/self/comm"),
    "cwd": os.getcwd(),
    "exe": os.readlink("/proc/self/exe"),
    "umask": os.umask(0o22),
    "ids": [os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0), os.getresuid(), os.getresgid()],
    "fds": fds,
    "fdinfo": [text(f"/proc/self/fdinfo/{n}") for n in ("0", "1", "2")],
    "status": status,
    "stat 0": [oct(os.fstat(0).st_mode), os.fstat(0).st_size, os.lseek(0, 0, 1)],
    "stdin": sys.stdin.read(),
    "streams": [repr(s) for s in (sys.stdin, sys.stdout, sys.stderr)],
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "handlers": [str(signal.getsignal(n)) for n in range(1, 32)],
    "limits": {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")},
    "nice": os.nice(0),
    "affinity": sorted(os.sched_getaffinity(0)),
    "cpus": os.cpu_count(),
    "threads": sorted(os.listdir("/proc/self/task")),
    "processes": sorted(p for p in os.listdir("/proc") if p.isdigit()),
    "mounts": text("/proc/mounts"),
    "meminfo": [l for l in text("/proc/meminfo").splitlines() if l.startswith(("MemTotal", "Swap"))],
    "disk": [
        (os.statvfs(p).f_blocks, os.statvfs(p).f_bavail, os.statvfs(p).f_files)
        for p in ("/workspace", "/tmp", "/dev/shm")
    ],
    "files": [
        facts(os.path.join(at, n))
        for top in ("/workspace", "/tmp", "/dev/shm")
        for at, folders, files in os.walk(top)
        for n in sorted(folders + files)
    ],
    "new": None,
    "child": None,
    "tempfile": sorted(os.listdir("/tmp")),
    "gc": gc.get_threshold(),
    "frames": [f.f_code.co_filename for f in [sys._getframe()]],
}
with open("/tmp/new", "w") as file:
    seen["new"] = os.fstat(file.fileno()).st_ino
with open("new", "w") as file:
    seen["new here"] = os.fstat(file.fileno()).st_ino
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
seen["child"] = pid
print(json.dumps(seen, indent=1, sort_keys=True, default=str))
"""


@pytest.fixture
async def cold(host: Host) -> AsyncIterator[Engine]:
    made = warm.make("gvisor", host)
    yield made
    abandoned = await made.sweep()
    remove(host, "gvisor")
    assert abandoned == 0


@pytest.fixture
async def ahead(host: Host, cold: Engine) -> AsyncIterator[Engine]:
    """A pooled engine over the same folder; `cold` ends after it."""
    assert isinstance(cold, GvisorEngine)
    made = warm.AlwaysWarm(cold)
    yield made
    await made.close()


async def both(cold: Engine, ahead: Engine, program: Program, bounds: Limits = LIMITS) -> tuple[Result, Result]:
    return await run(cold, program, bounds), await run(ahead, program, bounds)


async def test_process_sees_the_same_with_its_interpreter_ahead_of_it(cold: Engine, ahead: Engine):
    program = python(LOOK, args=("one", "--two"), files={"lib/mod.py": b"x = 1\n", "data": b"1"}, stdin=b"in\nput")
    assert sandbox_class(LIMITS, program).interpreter is not None
    first, second = await both(cold, ahead, program)
    assert (first.termination, first.stderr) == (Exited(0), b"")
    assert second.stdout.decode() == first.stdout.decode()
    assert second.outcome.termination == first.outcome.termination


async def test_process_sees_the_same_when_only_the_init_waited(cold: Engine, ahead: Engine):
    program = python(LOOK, env={**ENVIRONMENT, "PYTHONSAFEPATH": "1"})
    assert sandbox_class(LIMITS, program).interpreter is None
    first, second = await both(cold, ahead, program)
    assert first.termination == Exited(0)
    assert second.stdout.decode() == first.stdout.decode()


ENDINGS = {
    "syntax error": "x = 1\nif x:\nprint('never')\n",
    "late syntax error": "print('never')\n" * 500 + "def f(:\n",
    "traceback": "def f():\n    return 1 / 0  # here\n\nprint('before')\nf()\n",
    "own source": "import inspect, sys\nprint(open(__file__).read() == inspect.getsource(sys.modules['__main__']))\n",
    "empty": "",
    "no last newline": "print('end')",
    "carriage returns": "print('a')\r\nprint('b')\r\n",
    "byte order mark": "\ufeffprint('marked')\n",
    "declared UTF-8": "# -*- coding: utf-8 -*-\nprint('ä')\n",
    "wrong character": "print('a')\n\udcff\n",
    "large": "x = 1\n" * 10_000 + "print(x)\n",
    "too large to wait for": "x = 1\n" * 20_000 + "print(x)\n",
    "own import": "import main\nprint(main.__name__, __name__)\n",
    "multiprocessing": "import multiprocessing as m\nif __name__ == '__main__':\n"
    "    p = m.get_context('spawn').Process(target=print, args=('child',)); p.start(); p.join(); print(p.exitcode)\n",
    "signal": "import os\nos.kill(os.getpid(), 11)\n",
    "exit code": "raise SystemExit(9)\n",
    "reads stdin": "print(input() + input())\n",
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_result_is_the_same(cold: Engine, ahead: Engine, name: str):
    content = ENDINGS[name].encode("utf-8", "surrogateescape")
    program = Program((PYTHON, "main.py"), (File("main.py", content),), dict(ENVIRONMENT), b"one\ntwo\n")
    first, second = await both(cold, ahead, program)
    assert (second.termination, second.stdout, second.stderr) == (first.termination, first.stdout, first.stderr)


async def test_limits_are_those_of_the_program_not_of_the_boot(ahead: Engine):
    """What a sandbox was booted with is not what the next program of its kind gets."""
    assert isinstance(ahead, warm.AlwaysWarm)
    booted = limits(memory_bytes=64 << 20, cpus=0.5, processes=8, open_files=32)
    program = python("x = b'x' * (100 << 20)\nprint(len(x))", env={**ENVIRONMENT, "OTHER": "1"})
    await ahead.prepare(sandbox_class(booted))
    sandbox = await warm.PooledEngine.create(ahead, sandbox_class(limits(memory_bytes=256 << 20)))
    sink = Recorder()
    try:
        assert sandbox.start_kind is StartKind.WARM
        outcome = await sandbox.start(program, limits(memory_bytes=256 << 20), sink)
    finally:
        await sandbox.destroy()
    assert (outcome.termination, sink.stdout) == (Exited(0), b"%d\n" % (100 << 20))


async def test_interpreter_that_waits_takes_only_the_program_it_was_started_for(ahead: Engine):
    assert isinstance(ahead, warm.AlwaysWarm)
    expected, other = python("print('x')"), python("print('x')", args=("more",))
    sandbox = await ahead.create(sandbox_class(LIMITS, expected))
    try:
        with pytest.raises(RuntimeError, match="another kind"):
            await sandbox.start(other, LIMITS, Recorder())
    finally:
        await sandbox.destroy()


async def test_every_program_gets_a_sandbox_of_its_own(ahead: Engine):
    seen = set()
    for _ in range(3):
        sandbox = await ahead.create(sandbox_class(LIMITS, python("pass")))
        try:
            sink = Recorder()
            code = "import os\nprint(os.listdir('/tmp'), os.listdir('.'))\nopen('/tmp/mark', 'w')\nopen('mark', 'w')"
            await sandbox.start(python(code), LIMITS, sink)
            assert sink.stdout == b"[] ['main.py']\n"
            seen.add(sandbox.id)
        finally:
            await sandbox.destroy()
    assert len(seen) == 3


async def test_kill_and_destroy_of_a_frozen_sandbox_take_no_time(cold: Engine):
    assert isinstance(cold, GvisorEngine)
    async with asyncio.timeout(10):
        for end in ("kill", "destroy"):
            sandbox = await cold.create(sandbox_class(LIMITS))
            await sandbox.hold(None)
            await getattr(sandbox, end)()
            assert sandbox.cgroup.pids() == []
            await sandbox.destroy()
