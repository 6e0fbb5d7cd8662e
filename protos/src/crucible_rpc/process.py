"""How a process begins and ends: logging, the event loop, and one clear line when it cannot start."""

import asyncio
import atexit
import faulthandler
import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import NoReturn

from crucible_rpc import logs, signals
from crucible_rpc.errors import StartError
from crucible_rpc.settings import SettingsError

LOG_LEVEL_VARIABLE = "CRUCIBLE_LOG_LEVEL"
EXIT_FAILED = 1
EXIT_SETTINGS = 2
EXIT_INTERRUPTED = 130

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_log = logging.getLogger(__name__)


def run(
    main: Callable[[], Awaitable[int | None]],
    process: str,
    environ: Mapping[str, str] = os.environ,
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> NoReturn:
    """Runs `main` to its end as the process called `process`, and exits.

    `main` loads its settings, so that their errors are told here. Log records go to stderr from `CRUCIBLE_LOG_LEVEL`
    (default INFO) on. `loop_factory` makes the event loop; default: asyncio's own.

    Exit codes: what `main` returned, 0 for None; 2 after a SettingsError; 1 after a StartError or OSError (port in use,
    read-only folder, full disk), each with one line on stderr; 1 with a logged traceback after anything else, and when
    what was written could not be delivered. A process that is ended by a fault in native code (SIGABRT, SIGSEGV and
    their like) writes to stderr what each of its threads was doing.
    """
    level = environ.get(LOG_LEVEL_VARIABLE, "INFO").upper()
    if level not in _LEVELS:
        _exit(process, f"{LOG_LEVEL_VARIABLE} must be one of {', '.join(_LEVELS)}", EXIT_SETTINGS)
    logs.configure(process, level)
    faulthandler.enable()
    _prepare()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            code = runner.run(_awaited(main)) or 0
    except SettingsError as error:
        _exit(process, str(error), EXIT_SETTINGS)
    except StartError as error:
        _exit(process, str(error), EXIT_FAILED)
    except OSError as error:
        _log.debug("ended by an error of the operating system", exc_info=True)
        _exit(process, _os_error(error), EXIT_FAILED)
    except KeyboardInterrupt:
        _end(EXIT_INTERRUPTED)
    except SystemExit as wanted:  # of a parser of arguments
        _end(wanted.code if isinstance(wanted.code, int) else EXIT_FAILED if wanted.code else 0)
    except Exception:
        _log.exception("ended by an unexpected error")
        _end(EXIT_FAILED)
    _end(code)


def _prepare() -> None:
    """Makes this process cheap for its neighbours on a busy machine; on one with a free CPU nothing changes.

    A message for it does not interrupt whoever is at work, a sandbox or another service, but waits for the next free
    CPU, and several are then answered at once (sched(7), `SCHED_BATCH`). Threads and children inherit that, so
    sandboxes do not interrupt each other either. And what was imported is not looked through again for garbage.
    """
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    gc.collect()
    gc.freeze()


async def _awaited(main: Callable[[], Awaitable[int | None]]) -> int | None:
    try:
        return await main()
    finally:
        signals.ignored()


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _exit(process: str, text: str, code: int) -> NoReturn:
    sys.stderr.write(f"crucible-{process}: {logs.escaped(text)}\n")
    _end(code)


def _end(code: int) -> NoReturn:
    """Ends the process with its exit functions and what it wrote, and without taking Python apart.

    Threads of libraries (grpc's core) may still run then, and one that comes back to an interpreter that is half gone
    can abort the process, whose work was done and well.
    """
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed when the process began
        try:
            stream.flush()
        except OSError as error:
            code = code or EXIT_FAILED
            with suppress(OSError):
                os.write(2, f"what was written to {stream.name} is lost: {_os_error(error)}\n".encode())
    os._exit(code)
