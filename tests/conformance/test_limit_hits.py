"""What a limit refused a program without ending it is told with its source, or said to be beyond anybody's sight."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from crucible_executor.engines.base import Engine
from crucible_executor.model import REFUSING, Exited, Limit, LimitExceeded, Source
from tests.conformance.harness import Result, limits, python, run
from tests.conformance.matrix import NOT_OBSERVABLE, SEEN_BY, VERDICT
from tests.conformance.promises import needs

Record = Callable[[str, object], None]

FORKS = (
    "import os, time\n"
    "try:\n    while True:\n        if os.fork() == 0: time.sleep(30)\n"
    "except OSError as e: print(e.errno)"
)
THREADS = (
    "import threading, time\n"
    "try:\n    while True: threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
    "except RuntimeError: print(11)"
)
FILES = "files = []\ntry:\n    while True: files.append(open('/dev/null'))\nexcept OSError as e: print(e.errno)"
FILL = (
    "try:\n    with open('{folder}/f', 'wb', buffering=0) as f:\n        while True: f.write(b'x' * 65536)\n"
    "except OSError as e: print(e.errno)"
)
MAKE_FILES = (
    "n = 0\ntry:\n    while True: open(f'{folder}/{{n}}', 'w').close(); n += 1\nexcept OSError as e: print(e.errno)"
)


def judge(engine: Engine, result: Result, limit: Limit, record: Record) -> None:
    """A refusal was told, once, with who saw it; or this engine never sees it, and both it and the result say so."""
    outcome = result.outcome
    hits = [hit for hit in outcome.limit_hits if hit.limit is limit]
    if limit in engine.capabilities.not_observable:
        assert hits == []
        assert limit in outcome.unobserved
        record(VERDICT, NOT_OBSERVABLE)
        return
    assert len(hits) == 1
    assert limit not in outcome.unobserved
    assert {hit.limit for hit in outcome.limit_hits} == {limit}
    record(SEEN_BY, hits[0].source.value)


@needs(Limit.PROCESSES)
@pytest.mark.traced
async def test_refused_processes_are_told(engine: Engine, record_property: Record):
    result = await run(engine, python(FORKS), limits(processes=10))
    assert (result.termination, result.stdout) == (Exited(0), b"11\n")  # EAGAIN
    judge(engine, result, Limit.PROCESSES, record_property)


@needs(Limit.PROCESSES)
@pytest.mark.traced
async def test_refused_threads_are_told(engine: Engine, record_property: Record):
    result = await run(engine, python(THREADS), limits(processes=10))
    assert (result.termination, result.stdout) == (Exited(0), b"11\n")
    judge(engine, result, Limit.PROCESSES, record_property)


@needs(Limit.OPEN_FILES)
@pytest.mark.traced
async def test_refused_descriptors_are_told(engine: Engine, record_property: Record):
    result = await run(engine, python(FILES), limits(open_files=20))
    assert (result.termination, result.stdout) == (Exited(0), b"24\n")  # EMFILE
    judge(engine, result, Limit.OPEN_FILES, record_property)


@needs(Limit.DISK)
@pytest.mark.parametrize("folder", ["/workspace", "/tmp"])
async def test_a_full_disk_is_told(engine: Engine, folder: str, record_property: Record):
    result = await run(engine, python(FILL.format(folder=folder)), limits(disk_bytes=2 << 20))
    assert (result.termination, result.stdout) == (Exited(0), b"28\n")  # ENOSPC
    judge(engine, result, Limit.DISK, record_property)
    assert folder in result.outcome.limit_hits[0].detail


@needs(Limit.DISK_INODES)
@pytest.mark.parametrize("folder", ["/workspace", "/tmp"])
async def test_a_disk_without_a_free_inode_is_told(engine: Engine, folder: str, record_property: Record):
    result = await run(engine, python(MAKE_FILES.format(folder=folder)), limits(disk_inodes=40))
    assert (result.termination, result.stdout) == (Exited(0), b"28\n")
    judge(engine, result, Limit.DISK_INODES, record_property)
    assert folder in result.outcome.limit_hits[0].detail


@needs(Limit.DISK, Limit.WALL_TIME)
async def test_a_full_disk_of_a_program_that_was_ended_is_told_or_said_to_be_unobserved(engine: Engine):
    code = FILL.format(folder="/tmp") + "\nimport time; time.sleep(60)"
    result = await run(engine, python(code), limits(disk_bytes=2 << 20, wall_time=timedelta(seconds=1.5)))
    assert isinstance(result.termination, LimitExceeded)
    told = {hit.limit: hit.source for hit in result.outcome.limit_hits}
    # An init that was killed with its program can say nothing; the host's own file system still can.
    assert (Limit.DISK in told) != (Limit.DISK in result.outcome.unobserved)
    assert told in ({}, {Limit.DISK: Source.HOST_FILE_SYSTEM})


@pytest.mark.traced
async def test_what_was_not_refused_is_not_told_and_what_cannot_be_seen_is_named(engine: Engine):
    result = await run(engine, python("print('fine')"))
    assert (result.termination, result.stdout) == (Exited(0), b"fine\n")
    assert result.outcome.limit_hits == ()
    claimed = engine.capabilities
    assert claimed.not_observable <= claimed.enforces & REFUSING
    assert result.outcome.unobserved == claimed.not_observable


@needs(Limit.PROCESSES)
async def test_what_the_sandbox_says_of_itself_is_never_given_as_the_hosts_word(engine: Engine):
    """A program that fills every limit it can: nothing that only the sandbox can know has a source on the host."""
    code = FILL.format(folder="/tmp") + "\n" + FORKS
    result = await run(engine, python(code), limits(disk_bytes=2 << 20, processes=10))
    assert result.stdout == b"28\n11\n"
    host_sees = engine.capabilities.isolation.name == "CONTAINER"
    for hit in result.outcome.limit_hits:
        assert (hit.source in (Source.PIDS_CGROUP, Source.HOST_FILE_SYSTEM)) == host_sees, hit
