"""Calls in flight, and how they end when the server goes."""

import asyncio
from datetime import timedelta
from typing import Any

from crucible_rpc import identity
from crucible_rpc.errors import UnavailableError
from crucible_rpc.interceptors import Call, Method


class Drain:
    """An interceptor that knows the calls in flight; once draining it refuses new ones, and can end the others.

    Health is left alone: it must be able to say NOT_SERVING, and a health watcher would hold up the end for ever.
    """

    def __init__(self, process: str) -> None:
        self.draining = asyncio.Event()
        self._process = process
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cut = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many calls are being answered."""
        return len(self._tasks)

    def begin(self) -> None:
        """From now on new calls are refused."""
        self.draining.set()

    def cut(self) -> None:
        """Ends the wait for calls in flight now."""
        self._cut.set()

    async def wait(self, grace: timedelta) -> None:
        """Waits until no call is in flight, at most `grace` or until `cut`, then ends what is left with UNAVAILABLE."""
        idle, cut = asyncio.ensure_future(self._idle.wait()), asyncio.ensure_future(self._cut.wait())
        await asyncio.wait((idle, cut), timeout=grace.total_seconds(), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        cut.cancel()
        self._cut.set()
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1)

    def intercept(self, method: Method, call: Call) -> Call:
        """See `Interceptor`."""
        if method.full_name.startswith(identity.HEALTH_PREFIX):
            return call

        async def tracked(request: Any, context: Any) -> Any:
            if self.draining.is_set():
                raise self._refusal()
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("a call is always served by a task")
            self._tasks.add(task)
            self._idle.clear()
            try:
                return await call(request, context)
            except asyncio.CancelledError:
                if self._cut.is_set() and not context.cancelled():
                    task.uncancel()
                    raise self._refusal() from None
                raise
            finally:
                self._tasks.discard(task)
                if not self._tasks:
                    self._idle.set()

        return tracked

    def _refusal(self) -> UnavailableError:
        text = f"{self._process} is shutting down; try again in a moment"
        return UnavailableError("SHUTTING_DOWN", text, retry_after=timedelta(seconds=1))
