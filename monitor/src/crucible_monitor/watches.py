"""One watcher's view: what happened so far, then what happens, without a gap or a double in between.

It subscribes first and reads the log then. All that the log held when the read began is replayed; all that was
committed later reaches the subscription, because the tail delivers only what is committed. What both have is told by
its position.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import event_pb2
from crucible.storage.v1 import event_log_service_pb2 as log_api
from crucible_monitor.errors import storage_unavailable
from crucible_monitor.fanout import Fanout, Subscription
from crucible_rpc.errors import NotFoundError

_TERMINAL = frozenset({ev.EVALUATION_STATE_SUCCEEDED, ev.EVALUATION_STATE_FAILED, ev.EVALUATION_STATE_CANCELLED})


class ReadableLog(Protocol):
    """A log of which one evaluation's events can be read."""

    def read(
        self, tenant: str, evaluation: str, after_position: int
    ) -> AsyncGenerator[log_api.ReadEventsResponse, None]:
        """Events after a position as they are stored now; raises NotFoundError or UnavailableError."""
        ...


class Position(Protocol):
    """How far the log was followed."""

    @property
    def position(self) -> int | None:
        """The last event published; None before the tail began."""
        ...


@dataclass(frozen=True)
class FellBehind:
    """The watcher was too slow: go on with a new watch after this position."""

    resume_after_position: int


def is_terminal(event: event_pb2.Event) -> bool:
    """Whether an event is the last of its evaluation."""
    return event.HasField("state_changed") and event.state_changed.state in _TERMINAL


class Watches:
    """Serves watchers.

    While storage is away those that are there wait, and miss nothing; a new one is refused with UNAVAILABLE.

    Args:
        log: where what happened is read.
        fanout: where what happens comes from.
        tail: what feeds the fanout.
    """

    def __init__(self, log: ReadableLog, fanout: Fanout, tail: Position) -> None:
        self._log = log
        self._fanout = fanout
        self._tail = tail

    async def watch(
        self, tenant: str, evaluation: str, after_position: int
    ) -> AsyncGenerator[event_pb2.Event | FellBehind, None]:
        """The evaluation's events after a position; ends after the terminal one, or after `FellBehind`.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND, also for another tenant's.
            ResourceExhaustedError: TOO_MANY_WATCHERS.
            UnavailableError: PEER_UNAVAILABLE (storage) or SHUTTING_DOWN.
        """
        with self._fanout.subscribe(evaluation, tenant) as subscription:
            reached = after_position
            async with aclosing(self._replay(tenant, evaluation, after_position)) as replay:
                async for event in replay:
                    if event is None:  # it ended at or before `after_position`: nothing can come
                        return
                    yield event
                    if is_terminal(event):
                        return
                    reached = event.position
            async with aclosing(_live(subscription, reached)) as live:
                async for item in live:
                    yield item

    async def _replay(self, tenant: str, evaluation: str, after: int) -> AsyncGenerator[event_pb2.Event | None, None]:
        """Events above `after` as stored now; a last None when the terminal event is not above it."""
        since = self._tail.position
        if since is None:
            raise storage_unavailable()
        # One event more than asked for: usually that at `after`, which tells whether the evaluation ended there.
        latest, ended, more, covered = 0, False, False, since
        async with aclosing(self._log.read(tenant, evaluation, max(0, after - 1))) as batches:
            async for batch in batches:
                for event in batch.events:
                    _check_owner(event, tenant, evaluation)
                    latest = event.position
                    ended = is_terminal(event)
                    more = more or event.position > after
                    if event.position > after:
                        yield event
                covered = batch.last_position
        if covered < since:  # it read an older state than was followed already: something would be missing
            raise storage_unavailable()
        if not more and after > 0:
            if latest != after:
                ended = await self._has_ended(tenant, evaluation, after)
            if ended:
                yield None

    async def _has_ended(self, tenant: str, evaluation: str, by: int) -> bool:
        """Whether the terminal event is at or before a position that was no event of this evaluation."""
        async with aclosing(self._log.read(tenant, evaluation, 0)) as batches:
            async for batch in batches:
                if any(is_terminal(event) and event.position <= by for event in batch.events):
                    return True
        return False


async def _live(subscription: Subscription, reached: int) -> AsyncGenerator[event_pb2.Event | FellBehind, None]:
    while True:
        event = await subscription.next()
        if event is None:
            yield FellBehind(reached)
            return
        if event.position > reached:
            reached = event.position
            yield event
        if is_terminal(event):
            return


def _check_owner(event: event_pb2.Event, tenant: str, evaluation: str) -> None:
    if event.tenant != tenant or event.evaluation != evaluation:
        raise NotFoundError("EVALUATION_NOT_FOUND", f"there is no evaluation {evaluation}")
