"""SIGTERM and SIGINT as an event of the loop."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def caught() -> Iterator[asyncio.Event]:
    """Inside the block SIGTERM and SIGINT set the event instead of ending the process; they may do so repeatedly."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
