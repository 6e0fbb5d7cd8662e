"""Ctrl-C and SIGTERM as the cancellation of one task, so that its `finally` blocks run, and run to their end."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Inside the block SIGTERM, SIGINT and SIGHUP cancel the current task; each does so again when it comes again."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a coroutine is always run by a task")
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
