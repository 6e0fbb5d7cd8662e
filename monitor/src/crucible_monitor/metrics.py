"""What monitor counts: everything from the log itself, nothing per evaluation or tenant."""

import time
from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import event_pb2
from crucible_monitor.watches import is_terminal

_STATE_PREFIX = len("EVALUATION_STATE_")
_LIMIT_PREFIX = len("LIMIT_")


class MonitorMetrics:
    """Counts events as the tail delivers them.

    Args:
        registry: where the metrics are kept.
        now: seconds since the epoch.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._events = Counter("crucible_events", "Events of the log by kind.", ["kind"], registry=registry)
        self._ended = Counter(
            "crucible_evaluations_ended",
            "Evaluations that became terminal, by state and by what ended them.",
            ["state", "termination"],
            registry=registry,
        )
        self._position = Gauge("crucible_tail_position", "Last position of the log published.", registry=registry)
        self._lag = Gauge(
            "crucible_tail_lag_seconds",
            "From storage's recording of the last event to its publication here.",
            registry=registry,
        )
        self.watchers = Gauge("crucible_watchers", "Watchers being served.", registry=registry)
        self.connected = Gauge("crucible_tail_connected", "1 while the log is being followed.", registry=registry)
        self.fell_behind = Counter("crucible_watchers_fell_behind", "Watchers that were too slow.", registry=registry)

    def observe(self, events: Iterable[event_pb2.Event]) -> None:
        """Counts a batch that was published."""
        last = None
        for event in events:
            last = event
            self._events.labels(event.WhichOneof("kind") or "unknown").inc()
            if is_terminal(event):
                state = ev.EvaluationState.Name(event.state_changed.state)[_STATE_PREFIX:]
                self._ended.labels(state, termination_kind(event.state_changed.termination)).inc()
        if last is not None:
            self._position.set(last.position)
            self._lag.set(max(0.0, self._now() - last.time.seconds - last.time.nanos / 1e9))


def termination_kind(termination: ev.Termination) -> str:
    """What ended an evaluation, as a label: `exited`, `limit_exceeded:MEMORY`, …; few different ones."""
    kind = termination.WhichOneof("kind") or "unknown"
    if kind != "limit_exceeded":
        return kind
    limit = termination.limit_exceeded.limit
    known = limit in ev.Limit.values()
    return f"{kind}:{ev.Limit.Name(limit)[_LIMIT_PREFIX:]}" if known else f"{kind}:unknown"
