"""`python -m crucible_executor.benchmark`: an executor whose one engine runs nothing. Settings: CRUCIBLE_EXECUTOR_*.

Its state folder must be new, or its own: what an executor left that runs programs is not swept away here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from crucible_executor.benchmark.nothing import NAME, NothingEngine
from crucible_executor.composition import StoredImages
from crucible_executor.service import ExecutorService
from crucible_executor.settings import Settings
from crucible_rpc import process, settings
from crucible_rpc.errors import StartError

MARK = "runs-nothing"
"""A file of this name in a state folder says whose it is."""


async def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    chosen = dataclasses.replace(settings.load(Settings, prefix="CRUCIBLE_EXECUTOR_"), default_engine=NAME)
    claim(chosen.state_dir)
    service = await ExecutorService.start(chosen, [NothingEngine()], StoredImages(chosen.images_dir))
    await service.run()


def claim(state_dir: Path) -> None:
    """Marks a new state folder as that of an executor that runs nothing.

    Raises:
        StartError: an executor that runs programs uses it.
        OSError: it cannot be marked.
    """
    mark = state_dir / MARK
    if not mark.exists() and state_dir.exists() and any(state_dir.iterdir()):
        raise StartError(
            f"{state_dir} is an executor's that runs programs; this one runs none and needs its own folder"
        )
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    mark.touch(mode=0o600)


if __name__ == "__main__":
    process.run(main, "executor")
