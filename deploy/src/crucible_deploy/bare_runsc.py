"""The baseline of the benchmarks: runsc alone, with the very bundle and flags that the executor uses.

Both are taken from a live sandbox of the running stack; only the program differs, which here is started by the bundle
itself, not handed over by the executor.
"""

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from crucible_client import AsyncClient, EvaluationSpec, File, Limits, Program
from crucible_deploy import host
from crucible_deploy.layout import Layout

PROGRAM = "print('hello')\n"
"""What both sides run."""


class BenchError(Exception):
    """Something cannot be measured; the text says what and why."""


def trivial() -> EvaluationSpec:
    """The evaluation that is compared with one bare run."""
    return EvaluationSpec(Program("python", (File("main.py", PROGRAM.encode()),)))


@dataclass(frozen=True)
class BareRunsc:
    """runsc with the bundle in `folder`; `command` ends before the sandbox's id."""

    command: tuple[str, ...]
    folder: Path

    def once(self, number: int) -> float:
        """Runs the program once; returns the seconds it took.

        Raises:
            BenchError: it did not run.
        """
        began = time.monotonic()
        done = subprocess.run(
            [*self.command, f"bare{number}"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
        took = time.monotonic() - began
        if done.returncode != 0 or done.stdout != b"hello\n":
            raise BenchError(f"bare runsc failed: {done.stderr.decode(errors='replace')[-500:]}")
        return took

    def many(self, first: int, count: int, parallel: int) -> float:
        """Runs it `count` times by `xargs -P`, numbered from `first`; returns the seconds it took.

        Raises:
            BenchError: one of them did not run.
        """
        numbers = "\n".join(str(first + one) for one in range(count)).encode()
        began = time.monotonic()
        done = subprocess.run(
            ["xargs", "-P", str(parallel), "-I{}", *self.command, "bare{}"],
            input=numbers, capture_output=True, timeout=600, check=False,
        )  # fmt: skip
        took = time.monotonic() - began
        if done.returncode != 0 or done.stdout.count(b"hello\n") != count:
            raise BenchError(f"bare runsc failed: {done.stderr.decode(errors='replace')[-500:]}")
        return took


async def capture(layout: Layout, client: AsyncClient) -> BareRunsc:
    """Makes the baseline from a live sandbox.

    Raises:
        BenchError: no sandbox was seen.
    """
    sleeper = Program("python", (File("main.py", b"import time; print('up', flush=True); time.sleep(60)"),))
    limits = Limits(wall_time=timedelta(seconds=90))
    evaluation = await client.submit(EvaluationSpec(sleeper, limits, engine="gvisor"))
    try:
        async for event in client.watch(evaluation.name):
            if type(event).__name__ == "OutputChunk":
                return _captured(layout)
    finally:
        await client.cancel(evaluation.name, reason="seen")
    raise BenchError(f"the program that was to be looked at ended early; see {layout.log}")


def _captured(layout: Layout) -> BareRunsc:
    for pid in host.sandbox_processes(layout.sandboxes):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        except OSError:
            continue
        bundle = next((a.removeprefix("--bundle=") for a in argv if a.startswith("--bundle=")), None)
        # `runsc run` itself, not the sentry and gofer that it starts.
        if bundle is not None and "run" in argv and argv[0].endswith("runsc"):
            return _rewritten(layout, argv, Path(bundle))
    raise BenchError("no `runsc run` was found among the host's processes")


def _rewritten(layout: Layout, argv: list[str], bundle: Path) -> BareRunsc:
    folder = layout.run / "bare"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "root").mkdir(parents=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/usr/bin/python3", "-c", PROGRAM]
    (folder / "config.json").write_text(json.dumps(config))
    flags = [a for a in argv[1 : argv.index("run")] if not a.startswith("--root=")]
    runsc = str(layout.paths.runsc)
    return BareRunsc((runsc, f"--root={folder / 'root'}", *flags, "run", f"--bundle={folder}"), folder)
