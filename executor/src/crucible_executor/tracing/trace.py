"""The trace of one sandbox: what its reader says of it, from before its start until its processes are gone."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime

from crucible_executor.behaviour import Behaviour, Observation, Update
from crucible_executor.tracing import tally
from crucible_executor.tracing.live import Heard, MalformedFrameError

PATIENCE_S = 3.0
"""How long the reader may take for its report when a sandbox's processes are gone."""


_GRACE_S = 1.0
_EARLY = "the sandbox's kernel ended its trace before its run"


def _nothing() -> None:
    return


class Trace:
    """The trace of one sandbox.

    Args:
        flags: see below.
        close: called when it is forgotten.
        on_begin: called when its run begins.
        on_silence: called when the reader says nothing.

    Attributes:
        flags: what runsc is given for it.
    """

    def __init__(
        self,
        flags: tuple[str, ...] = (),
        *,
        close: Callable[[], None] = _nothing,
        on_begin: Callable[[], None] = _nothing,
        on_silence: Callable[[], None] = _nothing,
    ) -> None:
        self.flags = flags
        self._began = datetime.now(UTC)
        self._close = close
        self._on_begin = on_begin
        self._on_silence = on_silence
        self._ended: asyncio.Future[bytes | Behaviour] = asyncio.get_running_loop().create_future()
        self._connected = False
        self._heard = Heard()
        self._tell: Callable[[Update], None] | None = None
        self._untold: list[Update] = []
        self._told_last = False
        self._is_over = self._ended_early = False
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def none(cls, reason: str) -> Trace:
        """The trace of a sandbox that has none."""
        trace = cls()
        trace.end(Behaviour.not_observed(reason))
        return trace

    def connected(self) -> None:
        """The sandbox's kernel has its connection."""
        self._connected = True

    @property
    def is_connected(self) -> bool:
        """Whether the sandbox's kernel has, or had, its connection."""
        return self._connected

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be known."""
        return self._ended.done()

    @property
    def is_told(self) -> bool:
        """Whether a run goes on of which somebody is told."""
        return self._tell is not None and not self.has_ended

    def begin(self, tell: Callable[[Update], None]) -> None:
        """The run begins: a sandbox that was booted ahead may have waited, and no action is told as of before.

        Args:
            tell: called with each update until the end; the last says so if it is not observed what the program tries.
        """
        self._began = datetime.now(UTC)
        self._tell = tell
        for update in self._untold:
            tell(update)
        self._untold.clear()
        self._on_begin()
        self._expect_the_end()

    def expected(self) -> None:
        """The program runs, and the sandbox's kernel made its connection before that or never will."""
        if not self._connected:
            self.end(Behaviour.not_observed("the sandbox's kernel opened no trace"))

    def tells(self, frame: bytes) -> None:
        """Takes what the reader tells while the run goes on."""
        if self.has_ended:
            return
        try:
            update = self._heard.take(frame, self._began, datetime.now(UTC))
        except MalformedFrameError:
            self.end(Behaviour.not_observed("what the reader of the trace said makes no sense"))
        else:
            self._pass_on(update)

    def end(self, said: bytes | Behaviour) -> None:
        """The reader's report, or why there will be none. Only the first counts."""
        if self.has_ended:
            return
        self._ended.set_result(said)
        if isinstance(said, Behaviour):
            self._pass_on_end(said)
        self._expect_the_end()

    def over(self) -> None:
        """The run is over: from now on the sandbox's kernel may end its trace."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    async def behaviour(self) -> Behaviour:
        """What the program tried. To be called when the sandbox's processes are gone; returns within seconds."""
        self.over()
        self.expected()
        await asyncio.wait([self._ended], timeout=PATIENCE_S)
        if not self._ended.done():
            self.end(Behaviour.not_observed(f"the reader of the trace said nothing within {PATIENCE_S:g} s"))
            self._on_silence()
        said = self._ended.result()
        if isinstance(said, Behaviour):
            return said
        behaviour = tally.behaviour(said, self._began, datetime.now(UTC))
        if self._ended_early and behaviour.observation is not Observation.NOT_OBSERVED:
            reason = "; ".join(filter(None, (behaviour.reason, _EARLY)))
            behaviour = dataclasses.replace(behaviour, observation=Observation.PARTIAL, reason=reason)
        self._pass_on_end(behaviour)
        return behaviour

    def close(self) -> None:
        """Forgets it. Idempotent."""
        self.over()
        self._close()

    def _expect_the_end(self) -> None:
        """A kernel whose trace ends has ended, and its run with it; one that only closed it was taken over."""
        if self._tell is not None and not self._is_over and self.has_ended and isinstance(self._ended.result(), bytes):
            self._timer = asyncio.get_running_loop().call_later(_GRACE_S, self._early)

    def _early(self) -> None:
        self._ended_early = True
        self._pass_on(Update(Observation.PARTIAL, _EARLY))
        self._told_last = True

    def _pass_on_end(self, behaviour: Behaviour) -> None:
        """Tells what is not known yet: that nobody watched, or that something is missing."""
        partly = behaviour.observation is Observation.PARTIAL and not self._heard.something_is_missing
        if behaviour.observation is Observation.NOT_OBSERVED or partly:
            self._pass_on(Update(behaviour.observation, behaviour.reason))
            self._told_last = True

    def _pass_on(self, update: Update) -> None:
        if self._told_last:
            return
        if self._tell is None:
            self._untold.append(update)
        else:
            self._tell(update)
