"""The sum of one run's trace, in bounded memory and time, and its form on the way to the executor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from crucible_executor.behaviour import (
    MAX_EXAMPLES,
    Action,
    Actions,
    Behaviour,
    Observation,
)
from crucible_executor.tracing import actions, refusals, wire
from crucible_executor.tracing.live import Telling, checked_count, is_shown, missing

MAX_MESSAGES = 250_000
"""Looked at of one run, about 4 s of CPU time; more are counted as dropped."""

MAX_REPORT = 64 << 10
"""Bytes of a tally on its way."""


@dataclass
class _Kind:
    count: int = 0
    first: float | None = None
    examples: list[str] = field(default_factory=list)


class Tally:
    """Counts what comes in over one sandbox's connection.

    Args:
        now: the host's clock, in seconds since 1970.

    Attributes:
        telling: what is told of it while the run goes on.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.telling = Telling()
        self._now = now
        self._actions = actions.Actions()
        self._kinds = {action: _Kind() for action in Action}
        self._greeted = False
        self._messages = 0
        self._unread = 0
        self._dropped = 0
        self._refused = 0
        self._unsent = self._least_unsent = 0

    def add(self, data: memoryview, *, whole: bool = True) -> None:
        """Takes one datagram, whatever it is; `whole` is False when it was longer than `data`."""
        self._messages += 1
        if self._messages > MAX_MESSAGES or not whole:
            self._lose()
            return
        try:
            self._read(data)
        except wire.MalformedError:
            self._lose()

    def _lose(self) -> None:
        self._unread += 1
        if self._greeted:
            self._tell_of_lost()

    def _tell_of_lost(self) -> None:
        self.telling.lost(self._dropped + self._unsent, self._unread)

    def _read(self, data: memoryview) -> None:
        if not self._greeted:
            if wire.handshake_version(data) < wire.VERSION:
                raise wire.MalformedError("an unknown version")
            self._greeted = True
            return
        message = wire.message(data)
        # Only ever more: a kernel that takes its own count back is not believed.
        if message.dropped > self._dropped:
            self._dropped = message.dropped
            self._tell_of_lost()
        if message.kind in refusals.KINDS:
            self._refused += refusals.is_refused_process(message)
        for action, example in self._actions.of(message):
            kind = self._kinds[action]
            kind.count += 1
            if kind.first is None:
                kind.first = self._now()
            if len(kind.examples) < MAX_EXAMPLES and example not in kind.examples:
                kind.examples.append(example)
            self.telling.saw(action, example, kind.count, self._now)
        if self._actions.unsent < self._least_unsent:
            self._least_unsent = self._actions.unsent

    @property
    def is_due(self) -> bool:
        """Whether there is, or after `settle` may be, something to tell."""
        return self.telling.is_due or (self._actions.unsent > 0 and not self.telling.something_is_missing)

    def watch(self) -> None:
        """From now until `settle`, what the kernel did not send is told apart from what is just on its way.

        A call's number and names are two messages: only while neither is on its way the difference is what is missing.
        """
        self._least_unsent = self._actions.unsent

    def settle(self) -> None:
        """Takes what was missing all the time since `watch` for missing; at the end, `report` has all of it."""
        if self._least_unsent > self._unsent:
            self._unsent = self._least_unsent
            self._tell_of_lost()

    def report(self) -> bytes:
        """What `behaviour` reads; at most `MAX_REPORT` bytes."""
        dropped = self._dropped + self._actions.unsent
        kinds = {action.value: [kind.count, kind.first, kind.examples] for action, kind in self._kinds.items()}
        document = {
            "greeted": self._greeted,
            "dropped": dropped,
            "unread": self._unread,
            "refused": self._refused,
            "kinds": kinds,
        }
        return json.dumps(document).encode()


def behaviour(report: bytes, since: datetime, until: datetime) -> Behaviour:
    """What a report says. Its writer read what hostile code caused to be written: everything in it is checked.

    Args:
        report: made by `Tally.report`.
        since: nothing can have been seen before.
        until: nothing can have been seen after.
    """
    try:
        document = json.loads(report[:MAX_REPORT])
        kinds = {action: _actions(document["kinds"][action.value], since, until) for action in Action}
        dropped, unread, refused = (checked_count(document[name]) for name in ("dropped", "unread", "refused"))
        greeted = document["greeted"] is True
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, OSError):
        return Behaviour.not_observed("what the reader of the trace said makes no sense")
    if not greeted:
        return Behaviour.not_observed("the sandbox's kernel opened no trace")
    lost = missing(dropped, unread)
    observation = Observation.PARTIAL if lost else Observation.OBSERVED
    return Behaviour(observation, lost, kinds, dropped + unread, refused)


def _actions(said: Any, since: datetime, until: datetime) -> Actions:
    count, first, examples = said
    if not isinstance(examples, list) or len(examples) > MAX_EXAMPLES:
        raise ValueError("not a list of examples")
    if not all(isinstance(one, str) and is_shown(one) for one in examples):
        raise ValueError("an example is not bounded text")
    time = None if first is None else min(max(datetime.fromtimestamp(float(first), UTC), since), until)
    return Actions(checked_count(count), time, tuple(examples))
