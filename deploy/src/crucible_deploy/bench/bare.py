"""The baselines made of runsc alone, with the very bundle and flags that the executor uses.

Both are taken from a live sandbox of the running stack; only the program differs, which here is started by the bundle
itself, not handed over by the executor, and not traced.
"""

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from crucible_client import AsyncClient, EvaluationSpec, File, Limits, Program
from crucible_client.results import OutputChunk
from crucible_deploy import host
from crucible_deploy.bench import commands
from crucible_deploy.bench.commands import Command, expect
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.load import PROGRAM
from crucible_deploy.layout import Layout

_HELLO = b"hello\n"
_READY = b"ready\n"
_WAITS = "import sys; sys.stdout.write('ready\\n'); sys.stdout.flush(); exec(sys.stdin.read())"


@dataclass(frozen=True)
class BareRunsc:
    """runsc with a bundle of this program alone.

    Attributes:
        command: ends before `run`.
        config: the bundle's, whose program is to be replaced.
        folder: where bundles are written.
    """

    command: tuple[str, ...]
    config: str
    folder: Path

    def argv(self, code: str, sandbox: str) -> list[str]:
        """The command that runs a Python program in a sandbox of this name."""
        bundle = self.folder / f"bundle-{hashlib.sha256(code.encode()).hexdigest()[:16]}"
        if not bundle.is_dir():
            bundle.mkdir(parents=True)
            config = json.loads(self.config)
            config["process"]["args"] = ["/usr/bin/python3", "-c", code]
            (bundle / "config.json").write_text(json.dumps(config))
        return [*self.command, "run", f"--bundle={bundle}", sandbox]

    async def once(self, sandbox: str) -> float:
        """Runs the trivial program once; returns the seconds it took.

        Raises:
            BenchError: it did not run.
        """
        return expect(await commands.run(self.argv(PROGRAM, sandbox)), "bare runsc", _HELLO).seconds

    async def many(self, prefix: str, count: int, parallel: int) -> float:
        """Runs it `count` times by `xargs -P`; returns the seconds it took.

        Raises:
            BenchError: one of them did not run.
        """
        numbers = "\n".join(map(str, range(count))).encode()
        argv = ["xargs", "-P", str(parallel), "-I{}", *self.argv(PROGRAM, f"{prefix}-{{}}")]
        return expect(await commands.run(argv, numbers, timeout_s=600), "bare runsc", _HELLO * count).seconds

    @asynccontextmanager
    async def waiting(self, sandbox: str) -> AsyncIterator["HandMade"]:
        """A sandbox whose interpreter waits for its program on its standard input; gone afterwards.

        Raises:
            BenchError: it did not start.
        """
        command = Command(self.argv(_WAITS, sandbox), keep_stdin=True)
        made = await commands.to_the_end(lambda: HandMade.boot(command), stop=command.end)
        try:
            yield made
        finally:
            command.end()
            await commands.to_the_end(made.wait)


class HandMade:
    """A warm sandbox as anybody makes one by hand: booted, its interpreter waiting, used once."""

    def __init__(self, command: Command, process: subprocess.Popen[bytes]) -> None:
        self._command = command
        self._process = process

    @classmethod
    def boot(cls, command: Command) -> "HandMade":
        """Starts it and returns when it waits.

        Raises:
            BenchError: it does not.
        """
        process = command.start()
        assert process.stdout is not None  # noqa: S101  # for the type checker
        if process.stdout.readline() != _READY:
            _, said = process.communicate()
            raise BenchError(f"bare runsc did not start: {said.decode(errors='replace').strip()[-500:]}")
        return cls(command, process)

    async def run(self) -> float:
        """Gives it the trivial program; returns the seconds until all its processes have ended.

        Raises:
            BenchError: the program did not run.
        """
        return await commands.to_the_end(self._run, stop=self._command.end)

    def wait(self) -> None:
        """Waits for its end."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def _run(self) -> float:
        began = time.perf_counter()
        stdout, stderr = self._process.communicate(PROGRAM.encode(), timeout=60)
        seconds = time.perf_counter() - began
        return expect(
            commands.Finished(seconds, stdout, stderr, self._process.returncode), "a hand-made warm sandbox", _HELLO
        ).seconds


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
            if isinstance(event, OutputChunk):
                return captured(layout)
    finally:
        await client.cancel(evaluation.name, reason="seen")
    raise BenchError(f"the program that was to be looked at ended early; see {layout.log}")


def captured(layout: Layout) -> BareRunsc:
    """The flags and the bundle of any sandbox that lives now.

    Raises:
        BenchError: there is none.
    """
    for pid in host.sandbox_processes(layout.sandboxes):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        except OSError:
            continue
        bundle = next((a.removeprefix("--bundle=") for a in argv if a.startswith("--bundle=")), None)
        # `runsc run` itself, not the sentry and gofer that it starts.
        if bundle is None or "run" not in argv or not argv[0].endswith("runsc"):
            continue
        try:
            config = (Path(bundle) / "config.json").read_text()
        except OSError:
            continue
        folder = layout.run / "bare"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "root").mkdir(parents=True)
        return BareRunsc((str(layout.paths.runsc), f"--root={folder / 'root'}", *flags(argv)), config, folder)
    raise BenchError("no `runsc run` was found among the host's processes")


def flags(argv: list[str]) -> list[str]:
    """What a sandbox's runsc was given before `run`, without what is that sandbox's own."""
    own = ("--root=", "--pod-init-config=")
    return [flag for flag in argv[1 : argv.index("run")] if not flag.startswith(own)]
