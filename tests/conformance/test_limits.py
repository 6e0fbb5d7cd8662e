"""Each limit is reached on purpose; what ends or refuses the program is seen from outside."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta

import pytest

from crucible_executor.engines.base import Engine
from crucible_executor.host_pipes import READ_BYTES
from crucible_executor.model import OUTPUT_KILL_FACTOR, Exited, Limit, LimitExceeded, Signalled
from tests.conformance.harness import Recorder, limits, python, run, sandbox_class
from tests.conformance.promises import needs


def exceeded(termination: object, limit: Limit) -> LimitExceeded:
    assert isinstance(termination, LimitExceeded), termination
    assert termination.limit is limit
    assert re.search(r"\d", termination.evidence)
    return termination


@needs(Limit.WALL_TIME)
@pytest.mark.alone
async def test_program_that_ignores_sigterm_is_gone_at_its_deadline(engine: Engine):
    code = (
        "import signal, time\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    result = await run(engine, python(code), limits(wall_time=timedelta(seconds=1)))
    exceeded(result.termination, Limit.WALL_TIME)
    assert result.stdout == b"up\n"
    assert 1 <= result.outcome.usage.wall_time.total_seconds() < 2


@needs(Limit.WALL_TIME)
async def test_busy_loop_ends_at_its_deadline(engine: Engine):
    result = await run(engine, python("while True: pass"), limits(wall_time=timedelta(seconds=0.7)))
    exceeded(result.termination, Limit.WALL_TIME)


@needs(Limit.CPU_TIME)
async def test_busy_loop_ends_when_its_cpu_time_is_used_up(engine: Engine):
    result = await run(engine, python("while True: pass"), limits(cpu_time=timedelta(seconds=0.5)))
    exceeded(result.termination, Limit.CPU_TIME)
    assert result.outcome.usage.wall_time.total_seconds() < 5


@needs(Limit.CPU_TIME)
async def test_cpu_time_of_children_counts_too(engine: Engine):
    code = "import os\nfor _ in range(4): os.fork()\nwhile True: pass"
    result = await run(engine, python(code), limits(cpu_time=timedelta(seconds=0.8), cpus=2))
    exceeded(result.termination, Limit.CPU_TIME)


@needs(Limit.CPU_TIME)
async def test_waiting_uses_no_cpu_time(engine: Engine):
    result = await run(engine, python("import time; time.sleep(1)"), limits(cpu_time=timedelta(seconds=0.8)))
    assert result.termination == Exited(0)


@needs(Limit.CPUS)
async def test_cpus_bound_how_much_is_used_per_second(engine: Engine):
    code = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    usage = (await run(engine, python(code), limits(cpus=0.25))).outcome.usage
    assert usage.program_cpu is not None
    assert usage.program_cpu.total_seconds() < 1.2


@needs(Limit.MEMORY)
async def test_memory_hog_is_ended_by_the_kernel_with_evidence(engine: Engine):
    code = "hog = []\nwhile True: hog.append(bytearray(b'x' * 4_000_000))"
    result = await run(engine, python(code), limits(memory_bytes=96 << 20))
    evidence = exceeded(result.termination, Limit.MEMORY).evidence
    assert "OOM" in evidence
    assert str(96 << 20) in evidence


@needs(Limit.MEMORY)
async def test_memory_of_a_child_and_of_files_counts_too(engine: Engine):
    code = (
        "import os\nif os.fork() == 0:\n    hog = bytearray(b'x' * 60_000_000)\n    import time; time.sleep(30)\n"
        "with open('/tmp/f', 'wb') as f:\n    while True: f.write(b'y' * 1_000_000)"
    )
    result = await run(engine, python(code), limits(memory_bytes=96 << 20, disk_bytes=1 << 30))
    exceeded(result.termination, Limit.MEMORY)


@needs(Limit.MEMORY)
async def test_program_that_feeds_its_children_to_the_oom_killer_ends_with_the_first(engine: Engine):
    code = (
        "import os\nwhile True:\n    if os.fork() == 0:\n        hog = []\n"
        "        while True: hog.append(bytearray(b'x' * 4_000_000))\n    os.wait()"
    )
    result = await run(engine, python(code), limits(memory_bytes=96 << 20, wall_time=timedelta(seconds=8)))
    exceeded(result.termination, Limit.MEMORY)
    assert result.outcome.usage.wall_time.total_seconds() < 6


@needs(Limit.MEMORY)
async def test_what_stays_below_the_memory_limit_runs(engine: Engine):
    result = await run(engine, python("print(len(b'x' * 60_000_000))"), limits(memory_bytes=96 << 20))
    assert (result.termination, result.stdout) == (Exited(0), b"60000000\n")


@needs(Limit.OUTPUT)
async def test_output_beyond_the_limit_is_passed_on_until_its_factor_is_reached(engine: Engine):
    result = await run(engine, python("import os\nos.write(1, b'x' * 60_000)"), limits(output_bytes=4096))
    assert result.termination == Exited(0)
    assert len(result.stdout) == 60_000


@needs(Limit.OUTPUT)
async def test_flood_of_output_ends_the_program(engine: Engine):
    for number, name in ((1, "stdout"), (2, "stderr")):
        code = f"import os\nwhile True: os.write({number}, b'x' * 65536)"
        result = await run(engine, python(code), limits(output_bytes=65536))
        evidence = exceeded(result.termination, Limit.OUTPUT).evidence
        flood = result.stdout if number == 1 else result.stderr
        assert f"{len(flood)} bytes read from {name}" in evidence
        assert OUTPUT_KILL_FACTOR * 65536 < len(flood) <= OUTPUT_KILL_FACTOR * 65536 + READ_BYTES


@needs(Limit.PROCESSES)
@pytest.mark.alone
async def test_fork_bomb_is_bounded_and_its_neighbour_does_not_notice(engine: Engine):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError as e: print(e.errno, flush=True)"
    neighbour = (
        "import time, os\nfor _ in range(5): time.sleep(0.2); assert os.fork() or os._exit(0) is None\nprint('fine')"
    )
    bounds = limits(processes=16, wall_time=timedelta(seconds=4), output_bytes=1 << 24)
    bombed, other = await asyncio.gather(run(engine, python(bomb), bounds), run(engine, python(neighbour)))
    exceeded(bombed.termination, Limit.WALL_TIME)
    assert set(bombed.stdout.split()) == {b"11"}  # EAGAIN and nothing else
    assert (other.termination, other.stdout) == (Exited(0), b"fine\n")


@needs(Limit.PROCESSES)
async def test_processes_are_limited_to_the_number_given(engine: Engine):
    code = (
        "import os, time\ncount = 0\n"
        "try:\n    while True:\n        if os.fork() == 0: time.sleep(30)\n        count += 1\n"
        "except OSError as e: print(count, e.errno)"
    )
    assert (await run(engine, python(code), limits(processes=10))).stdout == b"9 11\n"


@needs(Limit.PROCESSES)
async def test_threads_count_as_processes(engine: Engine):
    code = (
        "import threading, time\nn = 0\n"
        "try:\n    while True:\n        threading.Thread(target=time.sleep, args=(20,), daemon=True).start(); n += 1\n"
        "except RuntimeError: print(n)"
    )
    assert (await run(engine, python(code), limits(processes=10))).stdout == b"9\n"


@needs(Limit.OPEN_FILES)
async def test_open_files_are_limited_to_the_number_given(engine: Engine):
    code = (
        "files = []\ntry:\n    while True: files.append(open('/dev/null'))\n"
        "except OSError as e: print(len(files) + 3, e.errno)"
    )
    assert (await run(engine, python(code), limits(open_files=20))).stdout == b"20 24\n"


@needs(Limit.DISK)
async def test_full_disk_is_an_error_of_the_program_and_a_limit_hit(engine: Engine):
    for folder in ("/workspace", "/tmp", "/dev/shm"):
        code = (
            f"n = 0\ntry:\n    with open('{folder}/f', 'wb', buffering=0) as f:\n"
            "        while True: n += f.write(b'x' * 65536)\n"
            "except OSError as e: print(n, e.errno)"
        )
        result = await run(engine, python(code), limits(disk_bytes=2 << 20))
        written, error = map(int, result.stdout.split())
        assert error == 28  # ENOSPC
        assert 1 << 20 < written <= 2 << 20
        seen = [(hit.limit, folder in hit.detail) for hit in result.outcome.limit_hits]
        assert seen == ([] if folder == "/dev/shm" else [(Limit.DISK, True)])


@needs(Limit.DISK_INODES)
async def test_inodes_are_limited_and_using_them_up_is_a_limit_hit(engine: Engine):
    for folder in ("/workspace", "/tmp"):
        code = (
            f"n = 0\ntry:\n    while True: open(f'{folder}/{{n}}', 'w').close(); n += 1\n"
            "except OSError as e: print(n, e.errno)"
        )
        result = await run(engine, python(code), limits(disk_inodes=40))
        made, error = map(int, result.stdout.split())
        assert error == 28  # ENOSPC
        assert 30 < made < 40
        assert [(hit.limit, folder in hit.detail) for hit in result.outcome.limit_hits] == [(Limit.DISK_INODES, True)]


async def test_no_limit_is_reported_where_none_was_hit(engine: Engine):
    result = await run(engine, python("import os; os.kill(os.getpid(), 9)"))
    assert result.termination == Signalled(9)
    assert result.outcome.limit_hits == ()


@needs(Limit.OUTPUT)
async def test_a_run_in_back_pressure_can_be_killed(engine: Engine):
    code = "import os\nprint('up', flush=True)\nwhile True: os.write(1, b'x' * 65536)"
    sandbox = await engine.create(sandbox_class(limits()))
    sink = Recorder()
    running = asyncio.create_task(sandbox.start(python(code), limits(output_bytes=1 << 40), sink))
    try:
        await sink.until_printed(b"up\n")
        await asyncio.wait_for(sandbox.kill(), 3)
        await asyncio.wait_for(running, 3)
    finally:
        await sandbox.destroy()
