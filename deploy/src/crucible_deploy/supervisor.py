"""Runs the processes of one home: up in the order of their needs, kept running, and down again in reverse."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from crucible_deploy import record
from crucible_deploy.child import Backoff, Child, ChildError
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import Layout
from crucible_deploy.logfile import LogFile
from crucible_deploy.spec import ProcessSpec

START_SECONDS = 60.0
"""How long one process may take from its start until it is ready."""

_log = logging.getLogger(__name__)


def _quiet(name: str, line: str) -> None:
    del name, line


class Supervisor:
    """The processes of one home, as an asynchronous context: inside it all were ready and are kept running.

    Entering raises ChildError when one does not come up; then those that were up have been stopped again.

    Args:
        layout: the home; its lock is held by the caller.
        specs: the processes, each after those that it needs.
        say: told every line of every process, as (name, line).
        backoff: how long to wait before a process is started again.
        own: the process that runs this, for the record.
    """

    def __init__(
        self,
        layout: Layout,
        specs: Sequence[ProcessSpec],
        *,
        own: ProcessIdentity,
        say: Callable[[str, str], None] = _quiet,
        backoff: Backoff | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._layout = layout
        self._own = own
        self._ready = False
        self._start_seconds = start_seconds
        self._logs = [LogFile(layout.log_file(spec.name)) for spec in specs]
        self.children = [
            Child(spec, log, say=say, changed=self._write_record, backoff=backoff)
            for spec, log in zip(specs, self._logs, strict=True)
        ]

    async def __aenter__(self) -> Self:
        try:
            for child in self.children:
                await child.start(self._start_seconds)
        except BaseException:
            await self._stop()
            raise
        self._ready = True
        self._write_record()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        """Stops all in reverse order, also when this task is cancelled meanwhile."""
        stopping = asyncio.ensure_future(self._stop_children())
        cancelled = False
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        stopping.result()

    async def _stop_children(self) -> None:
        self._ready = False
        for child in reversed(self.children):
            try:
                await child.stop()
            except (ChildError, OSError):
                # One that cannot be stopped well must not keep the others alive.
                _log.exception("stopping %s failed", child.spec.name)
        for log in self._logs:
            log.close()
        record.remove(self._layout)

    def _write_record(self) -> None:
        running = {child.spec.name: child.identity for child in self.children if child.identity is not None}
        address = self._layout.address("gateway")
        record.write(self._layout, record.Record(self._own, address, self._ready, running))
