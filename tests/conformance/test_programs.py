"""What a program gets and what comes back, byte by byte."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable

import pytest

from crucible_executor.engines.base import Engine, ProgramRefusedError
from crucible_executor.model import Exited, File, Isolation, Limit, Program, SandboxFailed, Signalled
from crucible_executor.selftest import model
from tests.conformance.harness import ENVIRONMENT, LIMITS, PYTHON, Recorder, limits, python, run, sandbox_class
from tests.conformance.matrix import VERSION
from tests.conformance.promises import GUISES, NEED_ROOT, PROMISES, Promise, needs


async def test_engine_claims_exactly_what_is_tested_here(engine: Engine, engine_name: str):
    promised = PROMISES[engine_name]
    claimed = engine.capabilities
    assert claimed.name == GUISES.get(engine_name, engine_name)
    assert claimed.enforces == promised - set(Promise)
    assert (claimed.isolation is not Isolation.NONE) == (Promise.ISOLATION in promised)
    assert engine_name in NEED_ROOT or claimed.isolation is Isolation.NONE


async def test_engine_knows_its_version_after_its_check_and_passes_its_self_test(
    engine: Engine, record_property: Callable[[str, object], None]
):
    await engine.check()
    assert engine.capabilities.version not in ("", "unknown")
    record_property(VERSION, engine.capabilities.version)
    results = {one.name: one async for one in model.run(engine.self_test())}
    assert [one for one in results.values() if one.status is model.Status.FAILED] == []
    assert results["a program runs and prints its token"].status is model.Status.PASSED
    assert results["killed, it is gone from the host"].status is model.Status.PASSED
    isolated = engine.capabilities.isolation is not Isolation.NONE
    assert (results["it has no network"].status is model.Status.PASSED) == isolated
    bounded = Limit.MEMORY in engine.capabilities.enforces
    assert (results["the memory limit ends a program"].status is model.Status.PASSED) == bounded


@pytest.mark.parametrize("code", [0, 1, 255])
async def test_exit_code_is_the_programs_own(engine: Engine, code: int):
    assert (await run(engine, python(f"raise SystemExit({code})"))).termination == Exited(code)


async def test_signal_that_ends_the_program_is_named(engine: Engine):
    result = await run(engine, python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert result.termination == Signalled(11)


async def test_stdout_and_stderr_come_back_apart_and_byte_exact(engine: Engine):
    # Through Python's own buffers: gVisor may cut a single large write() short, which POSIX allows.
    code = (
        "import sys\nsys.stdout.buffer.write(bytes(range(256)) * 300)\n"
        "sys.stderr.buffer.write(bytes(reversed(range(256))) * 300)"
    )
    result = await run(engine, python(code))
    assert result.termination == Exited(0)
    assert result.stdout == bytes(range(256)) * 300
    assert result.stderr == bytes(reversed(range(256))) * 300
    assert result.sink.starts == 1


@pytest.mark.parametrize("size", [0, 1, 65536, 3_000_000])
async def test_stdin_is_exactly_what_was_given_and_then_ends(engine: Engine, size: int):
    given = os.urandom(size)
    code = "import sys, hashlib\nd = sys.stdin.buffer.read()\nprint(len(d), hashlib.sha256(d).hexdigest())"
    result = await run(engine, python(code, stdin=given))
    assert result.stdout.decode() == f"{size} {hashlib.sha256(given).hexdigest()}\n"


async def test_arguments_arrive_unchanged(engine: Engine):
    args = ("", "two words", "-x", "new\nline", "ünïcode", "*", "$HOME", "'\"\\")
    result = await run(engine, python("import sys, json; print(json.dumps(sys.argv[1:]))", args=args))
    assert json.loads(result.stdout) == list(args)


async def test_environment_is_exactly_the_given_one(engine: Engine):
    given = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "EMPTY": "", "SPACED": "a b=c\nd"}
    code = "import os\nos.write(1, open('/proc/self/environ', 'rb').read())"
    result = await run(engine, python(code, env=given))
    assert set(result.stdout.strip(b"\0").split(b"\0")) == {f"{k}={v}".encode() for k, v in given.items()}


async def test_files_lie_in_their_folders_and_belong_to_the_program(engine: Engine):
    files = {"a/b/c.bin": bytes(range(256)), "a/d.txt": b"", "später.txt": b"x" * 100_000}
    code = (
        "import os, hashlib, json\nout = {}\n"
        "for at, _, names in os.walk('.'):\n"
        "    for n in names:\n"
        "        p = os.path.join(at, n)\n"
        "        if n != 'main.py': out[p[2:]] = hashlib.sha256(open(p, 'rb').read()).hexdigest()\n"
        "        open(p, 'ab').close(); assert os.stat(p).st_uid == os.getuid()\n"
        "os.mkdir('a/own'); open('a/own/file', 'w').write('x')\nprint(json.dumps(out))"
    )
    result = await run(engine, python(code, files=files))
    assert result.termination == Exited(0), result.stderr
    assert json.loads(result.stdout) == {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


async def test_many_files_and_a_large_one_arrive(engine: Engine):
    files = {f"many/{index:04}.txt": str(index).encode() for index in range(1500)} | {"large": os.urandom(4 << 20)}
    code = "import os; print(len(os.listdir('many')), os.path.getsize('large'), open('many/1499.txt').read())"
    result = await run(engine, python(code, files=files), limits(disk_bytes=32 << 20))
    assert result.stdout == b"1500 4194304 1499\n"


async def test_a_command_without_a_slash_is_looked_up_in_the_programs_own_path(engine: Engine):
    found = Program(("python3", "-c", "print('found')"), (), ENVIRONMENT, b"")
    assert (await run(engine, found)).stdout == b"found\n"


async def test_a_command_that_is_not_there_is_a_failure_of_the_sandbox_with_its_reason(engine: Engine):
    result = await run(engine, Program(("/nowhere/python3",), (), ENVIRONMENT, b""))
    assert isinstance(result.termination, SandboxFailed)
    assert "No such file" in result.termination.reason
    assert result.sink.starts == 0


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b", "./x", "", "a\0b", "x" * 256])
async def test_a_file_name_that_leads_out_is_refused_before_anything_runs(engine: Engine, path: str):
    sandbox = await engine.create(sandbox_class(LIMITS))
    sink = Recorder()
    try:
        with pytest.raises(ProgramRefusedError):
            await sandbox.start(Program((PYTHON, "-V"), (File(path, b"x"),), {}, b""), LIMITS, sink)
    finally:
        await sandbox.destroy()
    assert sink.starts == 0


async def test_signals_have_their_default_meaning_and_none_is_blocked(engine: Engine):
    # Python itself ignores SIGPIPE and SIGXFSZ, so those two say nothing here. What starts the engine may be started by
    # a shell or nohup that ignores the others.
    ignored = [signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1]
    code = (
        "import signal\nprint(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "print([s for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN])"
    )
    before = [signal.signal(number, signal.SIG_IGN) for number in ignored]
    try:
        result = await run(engine, python(code))
    finally:
        for number, handler in zip(ignored, before, strict=True):
            signal.signal(number, handler)
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "set()"
    assert not re.search("SIG(?!PIPE|XFSZ|_IGN)", lines[1].replace("Signals.", ""))


async def test_only_the_three_standard_descriptors_are_open(engine: Engine):
    # The listing's own descriptor is the fourth.
    result = await run(engine, python("import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"))
    assert result.stdout == b"[0, 1, 2, 3]\n"


async def test_no_core_files_and_own_session(engine: Engine):
    code = (
        "import os, resource\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), os.getsid(0) == os.getpid(), os.getpid() != 1)"
    )
    assert (await run(engine, python(code))).stdout == b"(0, 0) True True\n"


@needs(Promise.ISOLATION)
async def test_a_crash_dumps_no_core_and_the_limit_cannot_be_raised(engine: Engine):
    code = (
        "import os, resource\n"
        "try: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)); print('raised')\n"
        "except (ValueError, OSError): print('refused')\n"
        "if os.fork() == 0: os.abort()\n"
        "_, status = os.wait()\n"
        "print(os.WTERMSIG(status), os.WCOREDUMP(status), [n for n in os.listdir() if n.startswith('core')])"
    )
    result = await run(engine, python(code))
    assert result.stdout == b"refused\n6 False []\n"


async def test_processes_of_pythons_own_pool_work(engine: Engine):
    code = (
        "import multiprocessing as m\nif __name__ == '__main__':\n"
        "    with m.Pool(2) as pool: print(pool.map(abs, [-1, 2]))"
    )
    assert (await run(engine, python(code))).stdout == b"[1, 2]\n"


@needs(Promise.ISOLATION)
async def test_working_folder_is_workspace(engine: Engine):
    result = await run(engine, python("import os; print(os.getcwd(), os.listdir())"))
    assert result.stdout == b"/workspace ['main.py']\n"


async def test_usage_is_measured(engine: Engine, engine_name: str):
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    usage = (await run(engine, python(code))).outcome.usage
    assert 0.3 <= usage.wall_time.total_seconds() < 10
    assert usage.program_cpu is not None
    assert 0.25 <= usage.program_cpu.total_seconds() < 5
    if Promise.ISOLATION in PROMISES[engine_name]:
        assert usage.sandbox_cpu is not None
        assert usage.sandbox_cpu >= usage.program_cpu
        assert usage.peak_memory_bytes is not None
        assert 2 << 20 < usage.peak_memory_bytes < LIMITS.memory_bytes
