"""A whole executor over the real engines, which says where it listens and who it is; for tests that kill it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from crucible_executor.composition import StoredImages, engines_of
from crucible_executor.service import ExecutorService
from tests.executor.support import Keys, settings


async def main(keys: str, state: str, pool: str, *host: str) -> None:
    runsc, init_dir, images, run_dir, cgroup, docker_host = host
    chosen = settings(
        Keys(Path(keys), None, None),  # type: ignore[arg-type]  # their own halves stay with the test
        Path(state),
        default_engine="gvisor",
        pool_size=int(pool),
        trace=False,
        runsc=Path(runsc),
        init_dir=Path(init_dir),
        images_dir=Path(images),
        run_dir=Path(run_dir),
        cgroup=cgroup,
        docker_host=docker_host,
    )
    engines = engines_of(chosen, unsafe=True)
    service = await ExecutorService.start(chosen, engines, StoredImages(chosen.images_dir))
    print(service.port, service.executor_id, service.boot_id, flush=True)
    await service.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
