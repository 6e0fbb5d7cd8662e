"""A stack of its own for one command: its home, ports, keys and sandboxes are nobody else's, and gone afterwards.

`make demo` and `make bench` run in one, so that a stack that is already up on this machine is not touched.
"""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from crucible_client import AsyncClient
from crucible_client.async_client import DEFAULT_RETRY_FOR
from crucible_client.settings import load
from crucible_deploy import prepare, private_homes, users
from crucible_deploy.atomic import write_file
from crucible_deploy.daemon import own_identity
from crucible_deploy.layout import PROCESSES, Layout
from crucible_deploy.paths import Paths
from crucible_deploy.postgresql_server import PostgreSqlServer
from crucible_deploy.stack import Options
from crucible_deploy.supervisor import Supervisor

T = TypeVar("T")

_DATABASE = "crucible"


class PrivateStack:
    """A running private stack.

    Attributes:
        layout: its folders and ports.
        supervisor: what keeps it running.
    """

    def __init__(self, layout: Layout, supervisor: Supervisor) -> None:
        self.layout = layout
        self.supervisor = supervisor

    def client(self, *, retry_for: timedelta = DEFAULT_RETRY_FOR) -> AsyncClient:
        """A client with the admin key; to be used as an asynchronous context."""
        return AsyncClient(load(environ={"CRUCIBLE_HOME": str(self.layout.home)}), retry_for=retry_for)

    def pid(self, process: str) -> int:
        """The id of one of its processes as it runs now."""
        for child in self.supervisor.children:
            if child.spec.name == process and child.identity is not None:
                return child.identity.pid
        raise LookupError(f"{process} does not run")


@asynccontextmanager
async def private_stack(
    common: Layout,
    options: Options,
    say: Callable[[str], None],
    *,
    like: PrivateStack | None = None,
    server: PostgreSqlServer | None = None,
) -> AsyncIterator[PrivateStack]:
    """A stack that is ready inside and gone without a trace after, however the block ends.

    Args:
        common: the user's own layout; its cache is used, its home is not touched.
        options: what to start.
        say: told what is being done.
        like: another one whose Python environments this one uses; it must outlive this one.
        server: has the stack's database, in place of a file.

    Raises:
        PrepareError and its like (`prepare.EXPECTED_ERRORS`): it cannot be started here.
    """
    private_homes.remove_stale(common)
    layout = Layout(private_homes.make(common.paths.cache), free_offset())
    try:
        lock = prepare.take_lock(layout)
        with open(lock, "rb", closefd=True):  # noqa: PTH123, ASYNC230  # a descriptor, to be closed at the end
            if like is not None:
                _share_environments(layout, like.layout)
            if server is not None:
                _use(server, layout)
            specs = await _to_its_end(asyncio.to_thread(prepare.prepare, layout, options, say=say))
            say("starting " + ", ".join(PROCESSES))
            async with Supervisor(layout, specs, own=own_identity()) as supervisor:
                yield PrivateStack(layout, supervisor)
    finally:
        private_homes.remove(layout, common)


def _share_environments(layout: Layout, other: Layout) -> None:
    for process in PROCESSES:
        layout.environment(process).symlink_to(other.environment(process))


def _use(server: PostgreSqlServer, layout: Layout) -> None:
    server.execute(f"CREATE DATABASE {_DATABASE} TEMPLATE template0 ENCODING 'UTF8'")
    server.admit(users.ensure(layout.home, ["storage"])["storage"].gid)
    write_file(layout.database_file, f"{server.url(_DATABASE)}\n".encode(), mode=0o600)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Awaits work in a thread; when cancelled, only after the thread has ended: it must not go on behind our back."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise


def free_offset() -> int:
    """An offset at which every port of a stack is free now."""
    offsets = list(range(1000, 20_000, 20))  # all below the ports that clients are given
    random.SystemRandom().shuffle(offsets)
    for offset in offsets[:200]:
        if all(_is_free(port) for port in Layout(Paths(), offset).ports()):
            return offset
    raise prepare.PrepareError("no free ports were found on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
