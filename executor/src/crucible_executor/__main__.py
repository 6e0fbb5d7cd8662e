"""`python -m crucible_executor [--unsafe]`: the only place that reads the environment and wires the executor."""

from __future__ import annotations

import argparse
import contextlib

from crucible_executor.composition import StoredImages, engines_of, tracer_of
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
    async with contextlib.AsyncExitStack() as after:
        tracer = tracer_of(chosen)
        await tracer.sweep()
        after.push_async_callback(tracer.close)
        engines = engines_of(chosen, unsafe=unsafe, tracer=tracer)
        service = await ExecutorService.start(chosen, engines, StoredImages(chosen.images_dir))
        await service.run()


if __name__ == "__main__":
    arguments = _arguments()
    process.run(lambda: main(arguments.unsafe), "executor")
