"""From one stream of events to many watchers, each with a bounded queue: a slow one slows nobody.

Nothing is kept of an evaluation that nobody watches.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from crucible.evaluation.v1 import event_pb2
from crucible_monitor.errors import shutting_down
from crucible_rpc.errors import ResourceExhaustedError


@dataclass(frozen=True)
class Bounds:
    """What watchers may hold.

    Attributes:
        watchers: how many there may be.
        events: waiting for one watcher.
        bytes: of the events waiting for one watcher; a single larger event is still taken.
        total_bytes: of the events waiting for all watchers, each counted for itself.
    """

    watchers: int = 1000
    events: int = 1024
    bytes: int = 4 << 20
    total_bytes: int = 64 << 20


class Subscription:
    """One watcher's events, from when it was made on. Made by `Fanout.subscribe`."""

    def __init__(self, fanout: "Fanout", evaluation: str, tenant: str) -> None:
        self.evaluation = evaluation
        self.tenant = tenant
        self.fell_behind = False
        self.queued_bytes = 0
        self._fanout = fanout
        self._queue: deque[tuple[event_pb2.Event, int]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> event_pb2.Event | None:
        """The next event; None when this watcher fell behind and events were dropped.

        Raises:
            UnavailableError: SHUTTING_DOWN.
        """
        while not self._queue:
            if self.fell_behind:
                return None
            if self._fanout.closed:
                raise shutting_down()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event, size = self._queue.popleft()
        self._account(-size)
        return event

    def offer(self, event: event_pb2.Event, size: int, bounds: Bounds) -> None:
        """Queues an event, or drops the queue for good when it is full."""
        if self.fell_behind or event.tenant != self.tenant:
            return
        full = len(self._queue) >= bounds.events or (self._queue and self.queued_bytes + size > bounds.bytes)
        if full:
            self.drop()
            return
        self._queue.append((event, size))
        self._account(size)
        self.wake()

    def drop(self) -> None:
        """Marks the watcher as fallen behind and frees its queue at once: it may not read for a long time."""
        self.fell_behind = True
        self.clear()
        self._fanout.on_fell_behind()
        self.wake()

    def clear(self) -> None:
        """Frees the queue."""
        self._queue.clear()
        self._account(-self.queued_bytes)

    def wake(self) -> None:
        """Lets `next` look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _account(self, size: int) -> None:
        self.queued_bytes += size
        self._fanout.queued_bytes += size


class Fanout:
    """Knows the watchers by evaluation.

    Args:
        bounds: what they may hold.
        on_fell_behind: called for each watcher that fell behind.
    """

    def __init__(self, bounds: Bounds, on_fell_behind: Callable[[], None] = lambda: None) -> None:
        self.closed = False
        self.queued_bytes = 0
        self.watchers = 0
        self.on_fell_behind = on_fell_behind
        self._bounds = bounds
        self._by_evaluation: dict[str, set[Subscription]] = {}

    @contextmanager
    def subscribe(self, evaluation: str, tenant: str) -> Iterator[Subscription]:
        """Inside the block the subscription gets every event of the evaluation that is published.

        Raises:
            ResourceExhaustedError: TOO_MANY_WATCHERS.
            UnavailableError: SHUTTING_DOWN.
        """
        if self.closed:
            raise shutting_down()
        if self.watchers >= self._bounds.watchers:
            text = f"monitor serves {self._bounds.watchers} watchers and takes no more now; try again in a moment"
            raise ResourceExhaustedError("TOO_MANY_WATCHERS", text, retry_after=timedelta(seconds=5))
        subscription = Subscription(self, evaluation, tenant)
        self._by_evaluation.setdefault(evaluation, set()).add(subscription)
        self.watchers += 1
        try:
            yield subscription
        finally:
            self.watchers -= 1
            subscription.clear()
            others = self._by_evaluation[evaluation]
            others.discard(subscription)
            if not others:
                del self._by_evaluation[evaluation]

    def publish(self, event: event_pb2.Event) -> None:
        """Offers an event to those who watch its evaluation; never waits."""
        watching = self._by_evaluation.get(event.evaluation)
        if not watching:
            return
        size = event.ByteSize()
        for subscription in watching:
            subscription.offer(event, size, self._bounds)
        while self.queued_bytes > self._bounds.total_bytes:
            self._drop_largest()

    def close(self) -> None:
        """Ends all watchers, those to come included: the process is stopping."""
        self.closed = True
        for watching in self._by_evaluation.values():
            for subscription in watching:
                subscription.wake()

    def _drop_largest(self) -> None:
        everybody = (each for watching in self._by_evaluation.values() for each in watching)
        max(everybody, key=lambda each: each.queued_bytes).drop()
