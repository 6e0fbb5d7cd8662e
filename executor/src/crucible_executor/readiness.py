"""What this executor says of itself stays true: an engine that failed its check at the start is tried again and again.

Whether it takes work at all is a matter of its default engine.
"""

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
        offers: its engines; each is offered here once it works.
        runtimes: the runtimes that there are with some engines.
        tell: told why it takes no work, or an empty text when it does.
        first_pause_s: before the second try of an engine; doubles with each, up to `LONGEST_PAUSE_SECONDS`.
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
        self._first_pause_s = first_pause_s
        self._retrying: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Says how it is, and goes on trying what does not work until it does."""
        await self._tell(self._offers.not_serving)
        if self._offers.not_serving:
            _log.error("this executor takes no work", extra=logs.fields(reason=self._offers.not_serving))
        failed = [name for name, offered in self._offers.engines.items() if offered.refused]
        self._retrying = [asyncio.get_running_loop().create_task(self._retry(name)) for name in failed]

    async def end(self) -> None:
        """Tries no more."""
        for task in self._retrying:
            task.cancel()
        if self._retrying:
            await asyncio.wait(self._retrying)

    async def _retry(self, name: str) -> None:
        pause = self._first_pause_s
        while (offered := self._offers.engines[name]).refused:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            self._offers.put(await _again(offered), self._runtimes)
            if name == self._offers.default_engine:
                await self._tell(self._offers.not_serving)
                if not self._offers.not_serving:
                    _log.info("this executor takes work now", extra=logs.fields(engine=name))


async def _again(offered: OfferedEngine) -> OfferedEngine:
    """Checks an engine once more. What an earlier executor left in it may have been out of reach until now."""
    engine, name = offered.engine, offered.capabilities.name
    try:
        found = await engine.sweep()
        if found:
            _log.warning("removed sandboxes of an earlier executor", extra=logs.fields(engine=name, sandboxes=found))
        return await catalog.checked(engine, known=offered.refused)
    except Exception as error:
        refused = f"it failed with {type(error).__name__}: {error}; the log has it"
        if refused != offered.refused:
            _log.exception("engine cannot be tried", extra=logs.fields(engine=name))
        return OfferedEngine(engine, refused)
