"""Every runtime that is declared runs its programs under every engine with images, cold and with all that can wait."""

from __future__ import annotations

from datetime import timedelta

import pytest

from crucible_executor import ahead
from crucible_executor.engines.base import Engine
from crucible_executor.images import ImageNotFoundError, ImageStore
from crucible_executor.model import Exited, File, Program, SandboxClass
from crucible_executor.runtimes import BASE_ENV, RUNTIMES, Runtime
from tests.conformance.conftest import CACHE
from tests.conformance.harness import Recorder, Result, limits
from tests.conformance.promises import Promise, needs

pytestmark = needs(Promise.ISOLATION)

BOUNDS = limits(wall_time=timedelta(seconds=60), memory_bytes=1 << 30, processes=64, open_files=256)

SCIENCE = """
import numpy, pandas, scipy.linalg, sympy
print(int(numpy.arange(7).dot(numpy.arange(7))), round(scipy.linalg.det(numpy.eye(3) * 2), 6))
print(pandas.DataFrame({"a": [1, 2]}).a.sum(), sympy.factor("x**2 - 1"))
"""
NODE = """
const fs = require('fs')
console.log([6].map(n => n * 7)[0], fs.readdirSync('.').join(), process.argv.slice(2).join())
"""
PROGRAMS = {
    "python": ("main.py", "import sys\nprint(6 * 7, sys.version_info[:2] >= (3, 11))\n", b"42 True\n"),
    "bash": ("main.sh", "echo $((6 * 7)) ${BASH_VERSION:+bash} $1\n", b"42 bash one\n"),
    "python-science": ("main.py", SCIENCE, b"91 8.0\n3 (x - 1)*(x + 1)\n"),
    "node": ("main.js", NODE, b"42 main.js one,two\n"),
}


def runtimes() -> list[object]:
    """All of them; those whose image set-up does not build are run where somebody has built it."""
    store = ImageStore(CACHE / "images")
    found = []
    for runtime in RUNTIMES:
        marks = []
        try:
            store.resolve(runtime.image)
        except ImageNotFoundError:
            why = f"the image {runtime.image} is not built here; `make images` builds it"
            marks = [pytest.mark.skip(reason=why)]
        found.append(pytest.param(runtime, id=runtime.name, marks=marks))
    return found


def program_of(runtime: Runtime) -> Program:
    name, content, _ = PROGRAMS[runtime.name]
    return Program(runtime.argv(name, ("one", "two")), (File(name, content.encode()),), dict(BASE_ENV), b"")


def classes_of(runtime: Runtime, program: Program) -> list[SandboxClass]:
    """That in which its interpreter waits, where it can, and that in which only the init does."""
    entrypoint = PROGRAMS[runtime.name][0]
    waiting = ahead.interpreter(program, BOUNDS, entrypoint=entrypoint, reads_whole_file=runtime.reads_whole_file)
    assert (waiting is not None) == runtime.reads_whole_file
    return [
        SandboxClass(
            image_digest=runtime.image,
            memory_bytes=BOUNDS.memory_bytes,
            disk_bytes=BOUNDS.disk_bytes,
            disk_inodes=None,
            cpus=BOUNDS.cpus,
            processes=BOUNDS.processes,
            interpreter=interpreter,
        )
        for interpreter in {waiting, None}
    ]


@pytest.mark.parametrize("runtime", runtimes())
async def test_program_of_the_runtime_runs(engine: Engine, runtime: Runtime):
    program = program_of(runtime)
    for made in classes_of(runtime, program):
        sandbox = await engine.create(made)
        sink = Recorder()
        try:
            result = Result(await sandbox.start(program, BOUNDS, sink), sink)
        finally:
            await sandbox.destroy()
        assert (result.termination, result.stderr) == (Exited(0), b"")
        assert result.stdout == PROGRAMS[runtime.name][2]
