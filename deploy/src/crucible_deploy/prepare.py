"""All that comes before processes can be started: each step idempotent, each failure one line."""

import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from crucible_deploy import credentials, environments, record, stack, users
from crucible_deploy.child import ChildError
from crucible_deploy.credentials import CredentialsError
from crucible_deploy.environments import EnvironmentsError
from crucible_deploy.layout import PROCESSES, TRACE_READER, Layout, LayoutError, folder, make_home
from crucible_deploy.spec import ProcessSpec
from crucible_deploy.users import UsersError

UNPRIVILEGED = tuple(process for process in PROCESSES if process != "executor")
_USERS = (*UNPRIVILEGED, TRACE_READER)
"""The processes that have a user of their own; the executor is root."""

_LEFTOVER_SECONDS = 20.0


class PrepareError(Exception):
    """The stack cannot be started here; the text says why and what to do."""


EXPECTED_ERRORS = (PrepareError, LayoutError, UsersError, CredentialsError, EnvironmentsError, ChildError)
"""What is told as one line without a traceback."""


def take_lock(layout: Layout) -> int:
    """Makes the home and takes its lock; returns the lock's descriptor.

    Raises:
        PrepareError: not root, or a supervisor of this home runs.
        LayoutError: the home cannot be used.
    """
    if os.geteuid() != 0:
        raise PrepareError("`crucible up` must be started as root: only root can start each process as its own user")
    make_home(layout)
    lock = record.lock(layout)
    if lock is None:
        running = record.read(layout)
        where = f" at {running.address}, as process {running.supervisor.pid}" if running is not None else ""
        raise PrepareError(f"Crucible is already running in {layout.home}{where}; stop it with `crucible down`")
    return lock


def prepare(
    layout: Layout, options: stack.Options, *, say: Callable[[str], None], environ: Mapping[str, str] = os.environ
) -> list[ProcessSpec]:
    """Makes users, keys, environments and folders, and returns the processes to start. The lock must be held.

    Raises:
        PrepareError: something that `make setup` makes is missing, a port is taken, or old processes do not end.
        LayoutError, UsersError, CredentialsError, EnvironmentsError: see there.
        OSError: the home cannot be written.
    """
    _end_leftovers(layout)
    _check_built(layout)
    _check_ports(layout)
    accounts = users.ensure(layout.home, _USERS)
    source = environ.get("CRUCIBLE_SOURCE")
    checkout = environments.find_source(Path(source) if source else None)
    built = environments.ensure(layout, checkout, accounts)
    if built:
        say(f"installed {', '.join(built)} under {layout.envs}")
    made = credentials.ensure(layout, accounts)
    if made.renewed:
        say(f"made under {layout.pki}: {', '.join(made.renewed)}")
    for process in PROCESSES:
        account = accounts.get(process, users.ROOT)
        folder(layout.state(process), 0o700, account.uid, account.gid)
    folder(layout.sandboxes, 0o700)
    return stack.specs(layout, accounts, made, options)


def _end_leftovers(layout: Layout) -> None:
    """Ends what a killed supervisor left behind; each has had SIGTERM already, from the kernel."""
    left = record.read(layout)
    for name, process in left.processes.items() if left is not None else ():
        if process.alive:
            process.signal(signal.SIGTERM)
            if not process.wait_gone(_LEFTOVER_SECONDS):
                process.signal(signal.SIGKILL)
                if not process.wait_gone(5):
                    raise PrepareError(
                        f"process {process.pid}, {name} of an earlier start, does not end; end it by hand"
                    )
    record.remove(layout)


def _check_built(layout: Layout) -> None:
    paths = layout.paths
    for what, path in (("runsc", paths.runsc), ("the sandbox's init", paths.init), ("root file systems", paths.images)):
        if not path.exists():
            raise PrepareError(f"{what} is missing at {path}; run `make setup`")


def _check_ports(layout: Layout) -> None:
    for port in layout.ports():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                text = f"cannot listen on 127.0.0.1:{port}: {error.strerror}"
                raise PrepareError(f"{text}; stop what uses it, or set CRUCIBLE_PORT_OFFSET") from None
