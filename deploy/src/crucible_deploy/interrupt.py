"""Ctrl-C and SIGTERM as an end in good order: the `finally` blocks run, and run to their end."""

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AGAIN_S = 0.01


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


@contextmanager
def raised_by_signals() -> Iterator[None]:
    """For code of the main thread that is no coroutine: in the block SIGTERM, SIGINT, SIGHUP raise KeyboardInterrupt.

    Python drops an exception that a signal raises in a finalizer (`__del__`); such a one is raised again behind it.
    """
    dropped, late = sys.unraisablehook, list[threading.Timer]()

    def again(what: "sys.UnraisableHookArgs") -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):  # not raised from here: that would be dropped too
            late.append(threading.Timer(_AGAIN_S, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)))
            late[-1].start()
        else:
            dropped(what)

    before = {number: signal.signal(number, _raise) for number in _SIGNALS}
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = dropped
        for number, handler in before.items():
            signal.signal(number, handler)
        if late and late[-1].is_alive():
            late[-1].cancel()
            raise KeyboardInterrupt


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
