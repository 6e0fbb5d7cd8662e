"""Runs programs by PyPI's `llm-sandbox`, in that package's own environment: a process of the benchmarks.

A session, that is a container, per program. Nothing is installed into it: the image has its Python. Its containers are
stopped by SIGKILL: by the package's default, closing a session waits 10 s for an interpreter that ignores SIGTERM.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

# This file runs without our packages: what it needs lies beside it, behind what the environment has.
sys.path.append(str(Path(__file__).parent))
drive = importlib.import_module("driving").drive


def main() -> None:
    """Serves until standard input ends."""
    address, image = sys.argv[1:3]
    docker: Any = importlib.import_module("docker")
    llm_sandbox: Any = importlib.import_module("llm_sandbox")
    client = docker.DockerClient(base_url=address, max_pool_size=16)

    def run(code: str) -> bytes:
        with llm_sandbox.SandboxSession(
            client=client,
            lang="python",
            image=image,
            skip_environment_setup=True,
            keep_template=True,
            workdir="/tmp",  # noqa: S108  # the sandbox's own
            runtime_configs={"stop_signal": "SIGKILL"},
        ) as session:
            done = session.run(code)
        if done.exit_code != 0:
            raise RuntimeError(f"exit code {done.exit_code}: {done.stderr[-300:]}")
        return str(done.stdout).encode()

    drive(run)


if __name__ == "__main__":
    main()
