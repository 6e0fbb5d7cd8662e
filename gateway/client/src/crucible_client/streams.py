"""Where a stream stands, so that it can be gone on with after it broke; used by both clients."""

from collections.abc import AsyncGenerator
from typing import Any

from crucible_client import convert, errors, results

MAX_OUTPUT_BYTES = 64 << 20


class WatchCursor:
    """How far the events of one evaluation have come.

    Attributes:
        position: of the last event; the next stream goes on behind it.
        ended: whether the event of the terminal state came.
        fell_behind: whether the server ended the present stream because its reader was too slow.
    """

    def __init__(self, after_position: int) -> None:
        self.position = after_position
        self.ended = False
        self.fell_behind = False
        self._known_terminal = False
        self._opened_at = after_position

    def accept(self, response: Any) -> results.Event | None:
        """The event in a message of `WatchEvaluation`; None when it has none, or one that came before."""
        if response.WhichOneof("kind") == "fell_behind":
            self.fell_behind = True
            self.position = max(self.position, response.fell_behind.resume_after_position)
            return None
        event = convert.event(response.event)
        if event.position <= self.position:
            return None
        self.position, self._known_terminal = event.position, False
        self.ended = isinstance(event, results.StateChanged) and event.state.terminal
        return event

    def resumes_at_once(self) -> bool:
        """Whether the stream that just ended only has to be opened again: it fell behind, and brought something."""
        behind = self.fell_behind and self.position > self._opened_at
        self.fell_behind, self._opened_at = False, self.position
        return behind

    def stream_ended(self, state: results.State) -> bool:
        """Takes note that a stream ended without a terminal event, and what the state is now.

        A terminal state ends the watch only when a stream that was opened after it was known brought nothing either
        (the watch began behind the last event): the first stream may have been cut off before that event.
        """
        if self._known_terminal:
            self.ended = True
        self._known_terminal = state.terminal
        return self.ended


class OutputCursor:
    """How far one output stream has been read.

    Attributes:
        offset: of the next byte.
    """

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def accept(self, response: Any) -> bytes:
        """The bytes in a message of `ReadOutput`.

        Raises:
            DataLossError: they are not those that follow.
        """
        if response.offset != self.offset:
            raise errors.DataLossError("OUTPUT_GAP", f"the output goes on at {response.offset}, not at {self.offset}")
        data: bytes = response.data
        self.offset += len(data)
        return data


async def messages(call: Any) -> AsyncGenerator[Any, None]:
    """The call's messages; the call is cancelled when the reader stops, not when it is collected."""
    try:
        async for message in call:
            yield message
    finally:
        call.cancel()


def too_large(limit: int) -> errors.ResourceExhaustedError:
    """The error of an output that does not fit in memory's bound."""
    return errors.ResourceExhaustedError(
        "OUTPUT_TOO_LARGE", f"the output has more than {limit} bytes; read it with stream_output, or raise max_bytes"
    )


def cut_off() -> errors.UnavailableError:
    """The error that a stream which ended too early stands for."""
    return errors.UnavailableError("STREAM_ENDED", "the server ended the stream early; try again in a moment")
