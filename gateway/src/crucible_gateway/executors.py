"""What executors there are, as storage told it a moment ago."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.storage.v1 import status_service_pb2 as status
from crucible_gateway import limits
from crucible_rpc.errors import CallError, FailedPreconditionError, InvalidArgumentError

_LATER_S = 0.1
"""After the request that found the answer old: it is on its way to storage, and is not to be held up there."""


class ExecutorSource(Protocol):
    """Who knows the executors."""

    async def executors(self) -> status.ListExecutorsResponse:
        """Every executor that ever registered."""
        ...


class Executors:
    """A cached view of the registered executors.

    Args:
        source: who knows them.
        ttl: how old an answer may be.
        grace: how old an answer may be that a request is completed with, while a newer one is asked for beside it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        source: ExecutorSource,
        *,
        ttl: timedelta = timedelta(seconds=1),
        grace: timedelta = timedelta(seconds=3),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._ttl = ttl.total_seconds()
        self._grace = grace.total_seconds()
        self._clock = clock
        self._known: status.ListExecutorsResponse | None = None
        self._known_at = 0.0
        self._lock = asyncio.Lock()
        self._asking: asyncio.Task[None] | None = None

    @property
    def last_known(self) -> status.ListExecutorsResponse | None:
        """The latest answer however old, None before the first."""
        return self._known

    async def now(self) -> status.ListExecutorsResponse:
        """The executors, at most `ttl` ago.

        Raises:
            UnavailableError: storage cannot be asked.
        """
        return await self._since(self._clock() - self._ttl)

    async def complete(self, spec: ev.EvaluationSpec, defaults: limits.Defaults) -> None:
        """`limits.complete` with the executors there are, or were at most `grace` ago: nobody waits for storage twice.

        Nothing is refused for what was known before the request came: an executor that just registered counts.

        Raises:
            FailedPreconditionError: see `limits.complete`.
            InvalidArgumentError: see `limits.complete`.
            UnavailableError: storage cannot be asked.
        """
        began = self._clock()
        known = await self._recently()
        try:
            limits.complete(spec, known.executors, defaults)
        except (FailedPreconditionError, InvalidArgumentError):
            fresh = await self._since(began)
            if fresh is known:
                raise
            limits.complete(spec, fresh.executors, defaults)

    async def _recently(self) -> status.ListExecutorsResponse:
        age = self._clock() - self._known_at
        if self._known is None or age > max(self._ttl, self._grace):
            return await self.now()
        if age > self._ttl and self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return self._known

    async def _ask(self) -> None:
        try:
            await asyncio.sleep(_LATER_S)
            with suppress(CallError):  # whoever needs an answer and has none asks again, and is told
                await self.now()
        finally:
            self._asking = None

    async def _since(self, moment: float) -> status.ListExecutorsResponse:
        """An answer that was asked for at `moment` or later."""
        if self._known is not None and self._known_at >= moment:
            return self._known
        async with self._lock:  # many requests at once ask storage once
            if self._known is None or self._known_at < moment:
                asked_at = self._clock()
                self._known = await self._source.executors()
                self._known_at = asked_at
            return self._known
