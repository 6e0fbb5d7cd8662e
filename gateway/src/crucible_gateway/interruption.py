"""How calls that wait for long end when the gateway stops: at once and with a status that says so, never hanging."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from crucible_rpc.errors import UnavailableError


def shutting_down() -> UnavailableError:
    """What a caller is told whose wait was cut."""
    text = "the gateway is shutting down; what was accepted goes on: ask again with the same request_id or name"
    return UnavailableError("SHUTTING_DOWN", text, retry_after=timedelta(seconds=1))


class Interruption:
    """Ends the waits of all tasks that are inside `waiting` when `begin` is called."""

    def __init__(self) -> None:
        self._begun = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._interrupted: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Interrupts every wait, those to come included."""
        self._begun = True
        for task in self._tasks:
            self._interrupted.add(task)
            task.cancel()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside the block the current task may be interrupted.

        Raises:
            UnavailableError: SHUTTING_DOWN.
        """
        task = asyncio.current_task()
        if self._begun or task is None:
            raise shutting_down()
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._interrupted:
                raise
            task.uncancel()
            raise shutting_down() from None
        finally:
            self._tasks.discard(task)
            self._interrupted.discard(task)
