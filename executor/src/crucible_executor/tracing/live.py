"""What is told of a run while it goes on, on its way from the reader to the executor: in frames, within a budget.

`Telling` is the reader's side. `Heard` is the executor's: the reader read what hostile code caused to be written, so
everything in a frame is checked, and a reader that was taken over cannot tell more than the budget.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from crucible_executor.behaviour import MAX_EXAMPLE_CHARACTERS, MAX_TOLD, Action, Observation, Sight, Update

INTERVAL_S = 0.15
"""From the first new thing to its frame, so that there is at most one frame per run and interval."""

MAX_SIGHTS = 64
"""Of one frame."""

MAX_FRAME = 32 << 10
"""Bytes of one frame: each character of an example can be an escape of two."""

MAX_FRAMES = len(Action) * (MAX_TOLD + 1) + 1
"""Of one run: each has at least one sight, one kind that is exhausted, or the first word of something missing."""

_MAX_COUNT = 1 << 53


class MalformedFrameError(ValueError):
    """The bytes are not a frame that a reader in order would send."""


class Telling:
    """Collects what is new, and cuts it into frames."""

    def __init__(self) -> None:
        self._told: dict[Action, set[str] | None] = {action: set() for action in Action}
        self._sights: list[tuple[str, str, int, float]] = []
        self._exhausted: list[str] = []
        self._missing = (0, 0)
        self._missing_is_new = False

    @property
    def is_due(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._sights or self._exhausted or self._missing_is_new)

    @property
    def something_is_missing(self) -> bool:
        """Whether messages are."""
        return self._missing != (0, 0)

    def saw(self, action: Action, example: str, count: int, now: Callable[[], float]) -> None:
        """Takes an action, of its kind the `count`th; only what is new is kept, and its time in seconds since 1970."""
        told = self._told[action]
        if told is None or example in told:
            return
        if len(told) < MAX_TOLD:
            told.add(example)
            self._sights.append((action.value, example, count, now()))
        else:
            self._told[action] = None
            self._exhausted.append(action.value)

    def lost(self, dropped: int, unread: int) -> None:
        """Takes how many messages are missing; only the first time that is news."""
        self._missing_is_new = self._missing_is_new or not self.something_is_missing
        self._missing = (dropped, unread)

    def frame(self) -> bytes:
        """The first of what is to be told, at most `MAX_FRAME` bytes."""
        document = {"seen": self._sights[:MAX_SIGHTS], "exhausted": self._ended(), "missing": self._missing}
        return json.dumps(document).encode()

    def sent(self) -> None:
        """What `frame` returned, just before, is on its way."""
        self._exhausted = self._exhausted[len(self._ended()) :]
        del self._sights[:MAX_SIGHTS]
        self._missing_is_new = False

    def _ended(self) -> list[str]:
        """Kinds that are exhausted, only when all that was seen of them is told."""
        return self._exhausted if len(self._sights) <= MAX_SIGHTS else []


class Heard:
    """What the executor was told of one run; more than the budget, or anything that makes no sense, is refused."""

    def __init__(self) -> None:
        self._left: dict[Action, int] = dict.fromkeys(Action, MAX_TOLD)
        self._exhausted: set[Action] = set()
        self.something_is_missing = False

    def take(self, frame: bytes, since: datetime, until: datetime) -> Update:
        """What a frame says.

        Args:
            frame: made by `Telling.frame`.
            since: nothing can have been seen before.
            until: nothing can have been seen after.

        Raises:
            MalformedFrameError: see there.
        """
        try:
            update = self._read(frame, since, until)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, OSError) as error:
            raise MalformedFrameError(str(error)) from error
        is_missing = bool(update.reason)
        if not (update.sights or update.exhausted or is_missing > self.something_is_missing):
            raise MalformedFrameError("a frame that says nothing")
        if is_missing < self.something_is_missing:
            raise MalformedFrameError("what was missing is not missing any more")
        self.something_is_missing = is_missing
        return update

    def _read(self, frame: bytes, since: datetime, until: datetime) -> Update:
        if len(frame) > MAX_FRAME:
            raise ValueError("too long")
        document = json.loads(frame)
        seen, ended = document["seen"], document["exhausted"]
        if not isinstance(seen, list) or not isinstance(ended, list) or len(seen) > MAX_SIGHTS:
            raise ValueError("no lists within their bounds")
        sights = tuple(self._sight(one, since, until) for one in seen)
        exhausted = tuple(self._end(one) for one in ended)
        dropped, unread = document["missing"]
        reason = missing(checked_count(dropped), checked_count(unread))
        return Update(Observation.PARTIAL if reason else Observation.OBSERVED, reason, sights, exhausted)

    def _sight(self, said: Any, since: datetime, until: datetime) -> Sight:
        kind, example, count, time = said
        action = Action(kind)
        if not isinstance(example, str) or not is_shown(example) or action in self._exhausted:
            raise ValueError("an example is not bounded text, or of a kind that was exhausted")
        self._left[action] -= 1
        if self._left[action] < 0:
            raise ValueError("more of one kind than the budget")
        seen = min(max(datetime.fromtimestamp(float(time), UTC), since), until)
        return Sight(action, example, checked_count(count), seen)

    def _end(self, said: Any) -> Action:
        action = Action(said)
        if action in self._exhausted:
            raise ValueError("a kind was exhausted before")
        self._exhausted.add(action)
        return action


def missing(dropped: int, unread: int) -> str:
    """Why not everything is seen; empty when nothing is missing."""
    lost = []
    if dropped:
        lost.append(f"the sandbox's kernel dropped {dropped} message(s) of the trace")
    if unread:
        lost.append(f"{unread} message(s) were beyond the budget of a run or could not be read")
    return "; ".join(lost)


def is_shown(text: str) -> bool:
    """Whether it is bounded and speaks to no terminal."""
    return len(text) <= MAX_EXAMPLE_CHARACTERS and text.isascii() and text.isprintable()


def checked_count(said: Any) -> int:
    """The count that was said.

    Raises:
        ValueError: it is none.
    """
    if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said <= _MAX_COUNT:
        raise ValueError("not a count")
    return said
