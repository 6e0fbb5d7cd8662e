"""A real stack for tests: its own home, ports and keys, started and stopped by `crucible up` and `down`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from crucible_client import AsyncClient, Client, EvaluationSpec, File, Program
from crucible_client.settings import load
from crucible_deploy import private_homes, record
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import Layout
from crucible_deploy.paths import DEFAULT_CACHE, Paths
from crucible_deploy.private_stack import free_offset

COMMAND = (sys.executable, "-c", "from crucible_client.cli import main; main()")


class LocalStack:
    """One home; `up` and `down` as often as wanted, `remove` at the end.

    Args:
        cache: what was built for it.
        like: another one, whose environments it takes over instead of building the same again.
    """

    def __init__(self, cache: Path = DEFAULT_CACHE, *, like: "LocalStack | None" = None) -> None:
        self.layout = Layout(private_homes.make(cache, "crucible-system-"), free_offset())
        self.layout.home.chmod(0o755)
        if like is not None:
            subprocess.run(["cp", "-al", like.layout.envs, self.layout.envs], check=True)

    @property
    def environment(self) -> dict[str, str]:
        ours = {
            "CRUCIBLE_HOME": str(self.layout.home),
            "CRUCIBLE_CACHE": str(self.layout.paths.cache),
            "CRUCIBLE_PORT_OFFSET": str(self.layout.port_offset),
        }
        return {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")} | ours

    def crucible(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Runs the `crucible` command as root, against this stack."""
        options.setdefault("timeout", 100)
        return subprocess.run(
            [*COMMAND, *arguments], env=self.environment, capture_output=True, text=True, check=False, **options
        )

    def up(self, *arguments: str) -> None:
        done = self.crucible("up", "--detach", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        done = self.crucible("down")
        assert done.returncode == 0, done.stdout + done.stderr

    def remove(self) -> None:
        """Removes everything, and the users when this home made them and the machine's own stack needs none."""
        private_homes.remove(self.layout, Layout(Paths()))
        if self.layout.paths.cache != DEFAULT_CACHE:
            shutil.rmtree(self.layout.paths.cache)

    def client(self, **options) -> AsyncClient:
        return AsyncClient(load(environ={"CRUCIBLE_HOME": str(self.layout.home)}), **options)

    def sync_client(self) -> Client:
        return Client(load(environ={"CRUCIBLE_HOME": str(self.layout.home)}))

    def processes(self) -> dict[str, ProcessIdentity]:
        """What the supervisor runs now."""
        found = record.read(self.layout)
        assert found is not None, "the stack is not up"
        return found.processes

    def log(self, process: str) -> str:
        return self.layout.log_file(process).read_text(errors="replace")

    def kill(self, process: str) -> ProcessIdentity:
        """`kill -9` of one process; returns which it was."""
        identity = self.processes()[process]
        os.kill(identity.pid, 9)
        return identity


def python(code: str, **spec) -> EvaluationSpec:
    """An evaluation of one Python file."""
    return EvaluationSpec(Program("python", (File("main.py", code.encode()),)), **spec)


def until(condition: Callable[[], object], seconds: float = 30.0, what: str = "it") -> None:
    """Waits for something that has no event of its own, with a limit."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
