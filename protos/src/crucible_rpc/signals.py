"""SIGTERM and SIGINT as an event of the loop."""

import asyncio
import signal

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def caught() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from here on, instead of ending the process; they may do so repeatedly.

    The handlers stay until `ignored`. After the end of serving comes the process's own clean-up, and a killed parent
    with several threads signals its children once per thread (`PR_SET_PDEATHSIG`): the default action would then end a
    process that is still removing its sandboxes.
    """
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, event.set)
    return event


def ignored() -> None:
    """SIGTERM and SIGINT do nothing from here on: all is cleaned up, and a late one must not change the exit code."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.remove_signal_handler(number)  # closing the loop would do it, and set the default action again
        signal.signal(number, signal.SIG_IGN)
