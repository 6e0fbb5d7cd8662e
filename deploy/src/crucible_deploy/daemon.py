"""The supervisor as a process: in the foreground of a terminal, or detached from it."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from crucible_deploy import private_homes
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.interrupt import cancelled_by_signals
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from crucible_deploy.prepare import EXPECTED_ERRORS, prepare
from crucible_deploy.spec import ProcessSpec
from crucible_deploy.stack import Options
from crucible_deploy.supervisor import Supervisor

READY = "ready"


def own_identity() -> ProcessIdentity:
    """This process."""
    found = ProcessIdentity.of(os.getpid())
    if found is None:
        raise RuntimeError("/proc does not know this process")
    return found


async def serve(
    layout: Layout, specs: Sequence[ProcessSpec], *, say: Callable[[str, str], None], ready: Callable[[], None]
) -> None:
    """Keeps the processes running until SIGTERM, SIGINT or SIGHUP, then stops them; calls `ready` when all are.

    The stack of a private home also ends with the process that made the home, and the home with it.

    Raises:
        ChildError: one did not come up; the others are stopped.
    """
    maker = private_homes.maker_of(layout.home)
    try:
        with suppress(asyncio.CancelledError), cancelled_by_signals(), private_homes.cancelled_at_end_of(maker):
            async with Supervisor(layout, specs, own=own_identity(), say=say):
                ready()
                await asyncio.Event().wait()
    finally:
        if maker is not None and not maker.alive:
            private_homes.remove(layout, Layout(Paths()))


def arguments(layout: Layout, options: Options, *, lock: int, ready: int) -> list[str]:
    """The command that starts this module as a detached supervisor, with descriptors that it inherits."""
    command = [sys.executable, "-m", __name__, "--lock", str(lock), "--ready", str(ready)]
    command += ["--home", str(layout.home), "--cache", str(layout.paths.cache), "--offset", str(layout.port_offset)]
    if options.unsafe:
        command.append("--unsafe")
    if options.slots is not None:
        command += ["--slots", str(options.slots)]
    if options.pool is not None:
        command += ["--pool", str(options.pool)]
    if options.keep is not None:
        command += ["--keep", options.keep]
    return command


def main() -> int:
    """Runs a detached supervisor; tells its parent over the descriptor `--ready` how the start went."""
    parser = argparse.ArgumentParser(prog="crucible-supervisor")
    parser.add_argument("--lock", type=int, required=True)
    parser.add_argument("--ready", type=int, required=True)
    parser.add_argument("--home", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--offset", required=True)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--pool", type=int)
    parser.add_argument("--keep")
    parser.add_argument("--unsafe", action="store_true")
    given = parser.parse_args()
    os.set_inheritable(given.lock, False)
    os.set_inheritable(given.ready, False)
    environment = {"CRUCIBLE_HOME": given.home, "CRUCIBLE_CACHE": given.cache, "CRUCIBLE_PORT_OFFSET": given.offset}
    told = os.fdopen(given.ready, "w")

    def tell(text: str) -> None:
        if not told.closed:
            try:
                told.write(text)
                told.close()
            except BrokenPipeError:
                return  # nobody waits any more

    layout = Layout.of(environment)
    try:
        options = Options(unsafe=given.unsafe, slots=given.slots, pool=given.pool, keep=given.keep)
        specs = prepare(layout, options, say=lambda _: None)
        asyncio.run(serve(layout, specs, say=lambda _name, _line: None, ready=lambda: tell(READY)))
    except (*EXPECTED_ERRORS, OSError) as error:
        tell(str(error))
        return 1
    tell("stopped before it was ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
