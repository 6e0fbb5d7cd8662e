"""The interface of an engine, in two phases: a sandbox is created for a class, then takes one program, once."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from crucible_executor.behaviour import Update
from crucible_executor.model import (
    Interpreter,
    Isolation,
    Limit,
    Limits,
    Outcome,
    Program,
    SandboxClass,
    StartKind,
    Stream,
)
from crucible_executor.sampling import Sample
from crucible_executor.selftest.model import Check
from crucible_executor.spool import Spool


class Sink(Protocol):
    """Where a sandbox sends what happens while its program runs. Called on the event loop; never blocks."""

    def started(self) -> None:
        """The program itself was started."""

    def output(self, stream: Stream, data: bytes) -> None:
        """The program wrote `data`. Every byte that was read is passed on, in order; the caller bounds what is kept.

        Nothing more of a stream comes after it has gone beyond what ends a run.
        """

    def ending(self) -> None:
        """The run ends, by itself or not: what was not passed on yet comes at once, and the `Outcome` soon."""

    def tried(self, update: Update) -> None:
        """The program tried something, or nobody sees any more what it tries; at most `MAX_UPDATES` times."""

    def sampled(self, sample: Sample) -> None:
        """The sandbox was looked at; at most `MAX_SAMPLES` times, and never before 100 ms have passed."""

    def spool(self) -> Spool:
        """Where the files go that the program left. Asked for once at most, and only with `Limits.artifact_bytes`."""
        ...


@dataclass(frozen=True)
class Capabilities:
    """What an engine promises.

    Attributes:
        name: the registry's.
        version: what its runtime says of itself.
        isolation: what it puts between program and host.
        enforces: a request that needs another limit is refused.
        not_observable: of these, the ones of which this engine never sees whether they refused something.
        traced: its sandboxes tell their sink what a program tries, or that this is not observed.
    """

    name: str
    version: str
    isolation: Isolation
    enforces: frozenset[Limit]
    not_observable: frozenset[Limit] = frozenset()
    traced: bool = False


class EngineUnavailableError(Exception):
    """This machine cannot run this engine; the message says what is missing and how to mend it."""


class ProgramRefusedError(ValueError):
    """The program cannot be put into any sandbox (a file name, an argument, a count); the message says which."""


class Sandbox(abc.ABC):
    """One single-use sandbox.

    Life: `start` once (at most), `kill` at any time and any number of times, `destroy` last and always.
    """

    @property
    @abc.abstractmethod
    def id(self) -> str:
        """Unique on this host; by it the sandbox is found from outside."""

    @property
    def start_kind(self) -> StartKind:
        """Whether it was booted for its program or ahead of it."""
        return StartKind.COLD

    @abc.abstractmethod
    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        """Runs the program to its end, whatever ends it, and enforces `limits`, wall time and output included.

        When it returns, no process of the sandbox is left. A program's failure is an `Outcome`, never an exception.
        Cancelling the call kills the sandbox. On a sandbox that was killed before, it returns `Killed`.

        Raises:
            ProgramRefusedError: the caller let something through that it had to validate; nothing was started.
            RuntimeError: called twice, or after `destroy`.
        """

    @abc.abstractmethod
    async def kill(self) -> None:
        """Ends every process of the sandbox and returns when they are gone; `start` then returns `Killed`."""

    @abc.abstractmethod
    async def destroy(self) -> None:
        """Removes everything the sandbox left on the host (processes, mounts, cgroups, files). Idempotent."""


class HoldableSandbox(Sandbox):
    """A sandbox that can wait for its program, and is then given to a program of a class that it was not booted for.

    Life: `hold` once, `take` once, then as any sandbox; or `destroy` at any time.
    """

    @property
    @abc.abstractmethod
    def ended(self) -> asyncio.Future[int]:
        """Done when its processes have ended, whoever ended them."""

    @abc.abstractmethod
    async def hold(self, interpreter: Interpreter | None) -> None:
        """Starts an interpreter inside, if any, which waits for its program; then stops all, so that no CPU is used.

        Raises:
            EngineUnavailableError: the interpreter failed, or this machine cannot stop processes.
        """

    @abc.abstractmethod
    def take(self, sandbox_class: SandboxClass) -> None:
        """Sets the limits of `sandbox_class` and lets it go on.

        Raises:
            EngineUnavailableError: it is broken, or holds more memory than the class allows; destroy it.
        """

    @abc.abstractmethod
    def memory_bytes(self) -> int:
        """What the host counts as its memory now."""


class Engine(abc.ABC):
    """A way to run programs. Constructed once; `check` before use."""

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this engine promises."""

    @property
    def failing(self) -> str:
        """Why it cannot be used just now, although `check` once said that it can; empty when it can."""
        return ""

    @abc.abstractmethod
    async def check(self) -> None:
        """Finds out whether this machine can run the engine, by its self-test. May be asked again.

        Raises:
            EngineUnavailableError: it cannot; says why and what to do.
        """

    def self_test(self) -> Sequence[Check]:
        """What shows, by running something real, that the engine keeps what it promises here; see `selftest.engine`.

        May be run at any time beside programs, which it does not touch.
        """
        from crucible_executor.selftest import engine  # it runs programs in an `Engine`, so it cannot come first

        return engine.checks(self)

    @abc.abstractmethod
    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        """Makes a sandbox ready to take a program of this class.

        Raises:
            EngineUnavailableError: the host refused (say, no space, or no cgroups).
        """

    @abc.abstractmethod
    async def sweep(self) -> int:
        """Removes everything that an earlier process of this engine left behind; returns how many sandboxes."""

    async def close(self) -> None:  # noqa: B027  # most engines hold nothing
        """Removes what the engine holds beside the sandboxes that it gave out. The last call."""


class HoldableEngine(Engine):
    """An engine whose sandboxes can be booted ahead."""

    @abc.abstractmethod
    def fixed_at_boot(self, sandbox_class: SandboxClass) -> Hashable:
        """The part of a class that a booted sandbox cannot change any more: equal for those that can share one.

        Raises:
            EngineUnavailableError: no sandbox of this class can be made.
        """

    @abc.abstractmethod
    async def create(self, sandbox_class: SandboxClass) -> HoldableSandbox:
        """See `Engine.create`."""
