"""Whether this executor takes work: its default engine's self-test passed. One that failed is tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from crucible_executor import catalog
from crucible_executor.catalog import Catalog, OfferedEngine, OfferedRuntime
from crucible_rpc import logs

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
_log = logging.getLogger(__name__)


class Readiness:
    """Keeps what is said of this executor true.

    Args:
        offers: its engines; the default one is offered here once it works.
        runtimes: the runtimes that there are with some engines.
        tell: told why it takes no work, or an empty text when it does.
        first_pause_s: before the second try; doubles with each, up to `LONGEST_PAUSE_SECONDS`.
    """

    def __init__(
        self,
        offers: Catalog,
        runtimes: Callable[[Iterable[OfferedEngine]], list[OfferedRuntime]],
        tell: Callable[[str], Awaitable[None]],
        first_pause_s: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._offers = offers
        self._runtimes = runtimes
        self._tell = tell
        self._pause = first_pause_s
        self._retrying: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Says how it is; where it takes no work, goes on trying until it does."""
        await self._tell(self._offers.not_serving)
        if self._offers.not_serving:
            _log.error("this executor takes no work", extra=logs.fields(reason=self._offers.not_serving))
            if self._offers.default_engine in self._offers.engines:
                self._retrying = asyncio.get_running_loop().create_task(self._retry())

    async def end(self) -> None:
        """Tries no more."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.wait([self._retrying])

    async def _retry(self) -> None:
        while self._offers.not_serving:
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            engine = self._offers.engines[self._offers.default_engine].engine
            self._offers.put(await catalog.checked(engine), self._runtimes)
            await self._tell(self._offers.not_serving)
        _log.info("this executor takes work now", extra=logs.fields(engine=self._offers.default_engine))
