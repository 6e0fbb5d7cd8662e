"""Runs programs by PyPI's `epicbox`, in that package's own environment: a process of the benchmarks."""

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
    epicbox: Any = importlib.import_module("epicbox")
    profile = epicbox.Profile("python", image, user="65534", network_disabled=True)
    epicbox.configure(profiles=[profile], docker_url=address)
    limits = {"cputime": 20, "realtime": 60, "memory": 256}

    def run(code: str) -> bytes:
        files = [{"name": "main.py", "content": code.encode()}]
        done = epicbox.run("python", "/usr/bin/python3 main.py", files=files, limits=limits)
        if done["exit_code"] != 0:
            raise RuntimeError(f"exit code {done['exit_code']}: {done['stderr'][-300:]!r}")
        return bytes(done["stdout"])

    drive(run)


if __name__ == "__main__":
    main()
