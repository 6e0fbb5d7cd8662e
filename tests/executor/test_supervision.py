"""The watch over a run, where no real program shows it every time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from crucible_executor.behaviour import Update
from crucible_executor.model import Limits, Stream
from crucible_executor.sampling import Sample
from crucible_executor.spool import Spool
from crucible_executor.supervision import Supervision

LIMITS = Limits(timedelta(seconds=20), None, 1, 64 << 20, 16, 64, 1 << 20, 1 << 20, None)


class Nowhere:
    def started(self) -> None:
        pass

    def output(self, stream: Stream, data: bytes) -> None:
        pass

    def ending(self) -> None:
        pass

    def tried(self, update: Update) -> None:
        pass

    def sampled(self, sample: Sample) -> None:
        pass

    def spool(self) -> Spool:
        raise NotImplementedError


async def test_run_of_which_the_kernel_killed_a_part_is_over():
    """The rest could go on for its whole wall time, and have the kernel kill and log all the while."""
    kills = [0]
    run = Supervision(LIMITS, Nowhere())
    run.begin(oom_kills=lambda: kills[0])
    await asyncio.sleep(0)
    assert not run.over.done()
    kills[0] = 1
    assert await asyncio.wait_for(run.over, 5) is None
    run.close()
