"""The real program that an engine runs in order to know whether it works here."""

from __future__ import annotations

from datetime import timedelta

from crucible_executor.behaviour import Update
from crucible_executor.engines.base import Engine, EngineUnavailableError
from crucible_executor.model import Exited, Limits, Program, SandboxClass, Stream

_LIMITS = Limits(
    wall_time=timedelta(seconds=20),
    cpu_time=None,
    cpus=1,
    memory_bytes=128 << 20,
    processes=16,
    open_files=64,
    output_bytes=4096,
    disk_bytes=1 << 20,
    disk_inodes=None,
)


async def run(engine: Engine, image: str) -> None:
    """Runs `/bin/true` on `image` through create, start and destroy.

    Raises:
        EngineUnavailableError: it did not end with 0.
    """
    sandbox_class = SandboxClass(
        image_digest=image,
        memory_bytes=_LIMITS.memory_bytes,
        disk_bytes=_LIMITS.disk_bytes,
        disk_inodes=None,
        cpus=_LIMITS.cpus,
        processes=_LIMITS.processes,
    )
    sandbox = await engine.create(sandbox_class)
    try:
        outcome = await sandbox.start(Program(("/bin/true",), (), {}, b""), _LIMITS, _Nowhere())
    finally:
        await sandbox.destroy()
    if outcome.termination != Exited(0):
        name = engine.capabilities.name
        raise EngineUnavailableError(f"A trial program did not run in the engine {name}: {outcome.termination}.")


class _Nowhere:
    """A sink for a program whose output is of no interest."""

    def started(self) -> None:
        """Ignored."""

    def output(self, stream: Stream, data: bytes) -> None:
        """Ignored."""

    def tried(self, update: Update) -> None:
        """Ignored."""
