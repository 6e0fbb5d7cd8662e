"""The engine `nothing`: says of every program, at once, that it has ended. It runs none.

It measures what everything but an engine costs. It is not in the registry, so no setting of an executor offers it; only
`python -m crucible_executor.benchmark` does, and what it says is signed with its name.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta

from crucible_executor import limit_hits
from crucible_executor.engines.base import Capabilities, Engine, Sandbox, Sink
from crucible_executor.model import (
    Exited,
    Isolation,
    Killed,
    Limit,
    Limits,
    Outcome,
    Program,
    SandboxClass,
    Usage,
)
from crucible_executor.selftest.model import Check

NAME = "nothing"
_ENFORCED = frozenset({Limit.WALL_TIME, Limit.OUTPUT, Limit.OPEN_FILES})
"""What does not run goes beyond no limit; those that it names are those of `subprocess`, so that the same is asked."""


class NothingEngine(Engine):
    """Runs nothing."""

    @property
    def capabilities(self) -> Capabilities:
        """Its name, and no isolation."""
        return Capabilities(NAME, "runs nothing", Isolation.NONE, _ENFORCED, frozenset({Limit.OPEN_FILES}))

    async def check(self) -> None:
        """There is nothing to find out."""

    def self_test(self) -> Sequence[Check]:
        """There is nothing to test."""
        return ()

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        """Nothing with an id."""
        del sandbox_class
        return _Nothing()

    async def sweep(self) -> int:
        """Nothing can have been left."""
        return 0


class _Nothing(Sandbox):
    def __init__(self) -> None:
        self._id = f"n{secrets.token_hex(8)}"
        self._killed = False

    @property
    def id(self) -> str:
        return self._id

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        del program
        if not self._killed:
            sink.started()
            sink.ending()
        hidden = limit_hits.unobserved(_ENFORCED, limits, ())
        usage = Usage(timedelta(0), None, None, None)
        return Outcome(Killed() if self._killed else Exited(0), (), usage, unobserved=hidden)

    async def kill(self) -> None:
        self._killed = True

    async def destroy(self) -> None:
        pass
