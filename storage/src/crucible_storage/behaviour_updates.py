"""Whether a behaviour update is within its bounds: the executor's words come from what hostile code caused."""

from google.protobuf.duration_pb2 import Duration

from crucible.evaluation.v1 import behaviour_update_pb2 as bu
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_rpc.errors import InvalidArgumentError

MAX_UPDATES = 256
"""Of one attempt."""

MAX_ACTIONS = 64
MAX_EXAMPLE = 160
MAX_REASON = 1024
_MAX_SECONDS = 366 * 86_400
_OBSERVATIONS = frozenset(pb.Observation.values()) - {pb.OBSERVATION_UNSPECIFIED}
_KINDS = frozenset(bu.ActionKind.values()) - {bu.ACTION_KIND_UNSPECIFIED}


def check(update: bu.BehaviourUpdate) -> None:
    """Checks everything but the sequence's place.

    Raises:
        InvalidArgumentError: INVALID_FIELD.
    """
    if not 1 <= update.sequence <= MAX_UPDATES:
        raise _invalid(f"an attempt has 1 to {MAX_UPDATES} behaviour updates")
    if update.observation not in _OBSERVATIONS or len(update.reason) > MAX_REASON:
        raise _invalid("a behaviour update must say how far something was observed, in few words")
    if len(update.actions) > MAX_ACTIONS or len(update.exhausted) > len(_KINDS):
        raise _invalid(f"a behaviour update has at most {MAX_ACTIONS} actions and names no kind twice")
    if not all(_is_bounded(action) for action in update.actions) or not _KINDS.issuperset(update.exhausted):
        raise _invalid("an action must be of a known kind, with a count, a time and a bounded printable example")


def _is_bounded(action: bu.SeenAction) -> bool:
    example = action.example
    shown = len(example) <= MAX_EXAMPLE and example.isascii() and example.isprintable()
    return action.kind in _KINDS and action.count >= 1 and shown and _is_time(action.since_start)


def _is_time(duration: Duration) -> bool:
    return 0 <= duration.seconds <= _MAX_SECONDS and 0 <= duration.nanos < 1_000_000_000


def _invalid(message: str) -> InvalidArgumentError:
    return InvalidArgumentError("INVALID_FIELD", message)
