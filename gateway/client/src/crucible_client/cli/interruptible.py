"""`asyncio.run` for commands that end by Ctrl-C."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`; the first Ctrl-C cancels it, and KeyboardInterrupt comes when it has cleaned up.

    As `asyncio.run`, whose own handler runs only when the loop's wait is interrupted: a Ctrl-C that comes just before
    the loop begins to wait, or that another thread takes, is then seen when something else happens, perhaps never.
    A handler of the loop wakes it in any case. A second Ctrl-C interrupts the cleaning up.

    Raises:
        KeyboardInterrupt: Ctrl-C came.
    """
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else the caller chose to ignore it
    interrupted = False

    async def watched() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            loop.remove_signal_handler(signal.SIGINT)
            if task is not None:
                task.cancel()

        if heeded:
            loop.add_signal_handler(signal.SIGINT, interrupt)
        return await work

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
