"""A process that starts a sandbox, says its id once the program is up, and waits to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from crucible_executor.engines.registry import Host
from tests.conformance import warm
from tests.conformance.harness import LIMITS, Recorder, python, sandbox_class


async def main(engine_name: str, runsc: str, init_dir: str, images: str, run_dir: str, cgroup: str) -> None:
    engine = warm.make(engine_name, Host(Path(runsc), Path(init_dir), Path(images), Path(run_dir), cgroup))
    sandbox = await engine.create(sandbox_class(LIMITS))
    sink = Recorder()
    program = python(
        "import os, time\nos.fork()\nif os.fork() == 0: os.setsid()\nprint('up', flush=True)\ntime.sleep(60)"
    )
    running = asyncio.create_task(sandbox.start(program, LIMITS, sink))
    await sink.until_printed(b"up\n")
    print(sandbox.id, flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
