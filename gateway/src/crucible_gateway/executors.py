"""What executors there are, as storage told it a moment ago."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.storage.v1 import status_service_pb2 as status
from crucible_gateway import limits
from crucible_rpc.errors import FailedPreconditionError, InvalidArgumentError


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
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        source: ExecutorSource,
        *,
        ttl: timedelta = timedelta(seconds=1),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._ttl = ttl.total_seconds()
        self._clock = clock
        self._known: status.ListExecutorsResponse | None = None
        self._known_at = 0.0
        self._lock = asyncio.Lock()

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
        """`limits.complete` with the executors there are.

        Nothing is refused for what was known before the request came: an executor that just registered counts.

        Raises:
            FailedPreconditionError: see `limits.complete`.
            InvalidArgumentError: see `limits.complete`.
            UnavailableError: storage cannot be asked.
        """
        began = self._clock()
        known = await self.now()
        try:
            limits.complete(spec, known.executors, defaults)
        except (FailedPreconditionError, InvalidArgumentError):
            fresh = await self._since(began)
            if fresh is known:
                raise
            limits.complete(spec, fresh.executors, defaults)

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
