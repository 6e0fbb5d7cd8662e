"""`python -m crucible_executor [--unsafe]`: the only place that reads the environment and wires the executor."""

from __future__ import annotations

import argparse

from crucible_executor.composition import StoredImages, engines_of
from crucible_executor.service import ExecutorService
from crucible_executor.settings import Settings
from crucible_rpc import process, settings


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m crucible_executor", description="Runs programs in sandboxes. Settings: CRUCIBLE_EXECUTOR_*."
    )
    parser.add_argument(
        "--unsafe", action="store_true", help="offer engines without isolation too; for development machines only"
    )
    return parser.parse_args()


async def main(unsafe: bool) -> None:
    """Serves until SIGTERM or SIGINT."""
    chosen = settings.load(Settings, prefix="CRUCIBLE_EXECUTOR_")
    service = await ExecutorService.start(chosen, engines_of(chosen, unsafe=unsafe), StoredImages(chosen.images_dir))
    await service.run()


if __name__ == "__main__":
    arguments = _arguments()
    process.run(lambda: main(arguments.unsafe), "executor")
