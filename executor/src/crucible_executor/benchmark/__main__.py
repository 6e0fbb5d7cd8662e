"""`python -m crucible_executor.benchmark`: an executor whose one engine runs nothing. Settings: CRUCIBLE_EXECUTOR_*."""

from __future__ import annotations

import dataclasses

from crucible_executor.benchmark.nothing import NAME, NothingEngine
from crucible_executor.composition import StoredImages
from crucible_executor.service import ExecutorService
from crucible_executor.settings import Settings
from crucible_rpc import process, settings


async def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    chosen = dataclasses.replace(settings.load(Settings, prefix="CRUCIBLE_EXECUTOR_"), default_engine=NAME)
    service = await ExecutorService.start(chosen, [NothingEngine()], StoredImages(chosen.images_dir))
    await service.run()


if __name__ == "__main__":
    process.run(main, "executor")
