"""What storage measures of itself, for its admin port."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_storage.transaction import Counts, Notices

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_PREFIX = len("EVALUATION_STATE_")


class Metrics:
    """An `Observer` of the database that counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._evaluations = Gauge(
            "crucible_storage_evaluations", "Evaluations by state, over all tenants.", ["state"], registry=registry
        )
        self._batch = Histogram(
            "crucible_storage_batch_operations", "Writes per group commit.", buckets=_BATCHES, registry=registry
        )
        self._seconds = Histogram(
            "crucible_storage_commit_seconds", "BEGIN to COMMIT of a group.", buckets=_SECONDS, registry=registry
        )
        self._events = Counter("crucible_storage_events", "Events appended to the log.", registry=registry)
        asked = Counter("crucible_storage_ended_reads", "Ended evaluations asked for.", ["cache"], registry=registry)
        self._hit, self._miss = asked.labels("hit"), asked.labels("miss")
        self._cache = Gauge("crucible_storage_ended_cache_bytes", "Of these, remembered.", registry=registry)
        self._moved = Counter(
            "crucible_storage_moved_output_bytes", "Output moved to the artifact store.", registry=registry
        )
        self._position = Gauge("crucible_storage_log_position", "Last position of the event log.", registry=registry)

    def start(self, counts: dict[int, int], position: int) -> None:
        """Sets what earlier processes left."""
        for state in set(pb.EvaluationState.values()) - {pb.EVALUATION_STATE_UNSPECIFIED}:
            self._evaluations.labels(_label(int(state))).set(counts.get(int(state), 0))
        self._position.set(position)

    def remembered(self, hit: bool, size: int) -> None:
        """See `CacheObserver`."""
        (self._hit if hit else self._miss).inc()
        self._cache.set(size)

    def output_moved(self, size: int) -> None:
        """A stream of so many bytes went to the artifact store."""
        self._moved.inc(size)

    def committed(self, operations: int, seconds: float, notices: Notices, counts: Counts) -> None:
        """See `Observer`."""
        self._batch.observe(operations)
        self._seconds.observe(seconds)
        if notices.appended:
            self._events.inc(notices.appended)
            self._position.set(notices.last_position)
        for (_, state), change in counts.items():
            self._evaluations.labels(_label(state)).inc(change)


def _label(state: int) -> str:
    return pb.EvaluationState.Name(pb.EvaluationState.ValueType(state))[_PREFIX:].lower()
