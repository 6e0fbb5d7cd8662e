"""The record of a control's program, which nobody traces: made from what the planted weakness lets it send."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from crucible_executor.behaviour import Action, Actions, Behaviour, Observation
from crucible_executor.tracing import tally, wire
from crucible_executor.verify.model import Control

_PATH_FIELD = 6


def record(control: Control, messages: Sequence[str]) -> Behaviour | None:
    """What the record says that the program tried; None where no weakness of the trace is planted.

    Args:
        control: the weakness.
        messages: what came over the connection that was left open in the program, in hexadecimal.
    """
    came = [bytes.fromhex(one) for one in messages]
    if control.silent_trace:
        return Behaviour(Observation.OBSERVED, "", {action: Actions() for action in Action})
    if control.raw_trace:
        names = tuple(name for one in came for name in _names(one))
        written = Actions(len(names), None, names[:10])
        return Behaviour(
            Observation.OBSERVED, "", {action: Actions() for action in Action} | {Action.FILES_WRITTEN: written}
        )
    if control.trace_fd:
        began, summed = datetime.now(UTC), tally.Tally()
        for one in (wire.HANDSHAKE, *came):
            summed.add(memoryview(one))
        return tally.behaviour(summed.report(), began, datetime.now(UTC))
    return None


def _names(message: bytes) -> list[str]:
    """The names of files in a message, as they are."""
    try:
        taken = wire.message(memoryview(message))
        found = [value for number, value in wire.fields(taken.payload) if number == _PATH_FIELD]
    except wire.MalformedError:
        return []
    if taken.kind != wire.Kind.OPEN:
        return []
    return [bytes(value).decode(errors="surrogateescape") for value in found if not isinstance(value, int)]
