"""The engine that runs nothing: for the benchmarks, and offered by nothing else"""

import subprocess
import sys

import pytest

from crucible_executor.benchmark.__main__ import claim
from crucible_executor.benchmark.nothing import NAME, NothingEngine
from crucible_executor.engines.registry import ENGINES
from crucible_executor.model import Exited, Isolation, Killed
from crucible_rpc.errors import StartError
from tests.conformance.harness import LIMITS, Recorder, python, sandbox_class


async def test_it_says_at_once_that_a_program_has_ended_and_runs_none(tmp_path):
    program = python(f"open({str(tmp_path / 'ran')!r}, 'w')")
    sandbox, sink = await NothingEngine().create(sandbox_class(LIMITS, program)), Recorder()
    outcome = await sandbox.start(program, LIMITS, sink)
    await sandbox.destroy()
    assert outcome.termination == Exited(0)
    assert (outcome.usage.program_cpu, outcome.usage.peak_memory_bytes) == (None, None)
    assert (sink.starts, list(tmp_path.iterdir())) == (1, [])


async def test_what_was_killed_before_its_start_does_not_start():
    program = python("")
    sandbox, sink = await NothingEngine().create(sandbox_class(LIMITS, program)), Recorder()
    await sandbox.kill()
    assert (await sandbox.start(program, LIMITS, sink)).termination == Killed()
    assert sink.starts == 0


def test_the_folder_of_an_executor_that_runs_programs_is_not_taken(tmp_path):
    claim(tmp_path / "new")
    claim(tmp_path / "new")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/journal").touch()
    with pytest.raises(StartError, match="runs programs"):
        claim(tmp_path / "used")


def test_no_executor_but_the_benchmarks_offers_it():
    assert NAME not in ENGINES
    assert NothingEngine().capabilities.isolation is Isolation.NONE
    loads = "import crucible_executor.__main__, sys; print([m for m in sys.modules if 'executor.benchmark' in m])"
    loaded = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == "[]"
