"""Streams whose reader does not read: gRPC then holds the next answer back, without any bound in time."""

import asyncio
from datetime import timedelta
from typing import Any

from crucible_rpc import status
from crucible_rpc.errors import UnavailableError


async def write(context: Any, answer: Any, patience: timedelta) -> bool:
    """Writes an answer of a stream; False when the reader took nothing for `patience`.

    After False nothing more can be written: `give_up` and return. Whether this answer arrives is not known.
    """
    try:
        async with asyncio.timeout(patience.total_seconds()):
            await context.write(answer)
    except TimeoutError:
        return False
    return True


def give_up(context: Any, position: int) -> None:
    """Ends a stream for its reader with READER_STALLED when the handler returns; raised, it would wait for the reader.

    Args:
        context: of the call.
        position: of the last thing that was written whole.
    """
    text = f"this stream was not read for too long and ends here; call again with a position from {position} on"
    answer = status.to_status(UnavailableError("READER_STALLED", text, retry_after=timedelta(0)))
    context.set_code(answer.code)
    context.set_details(answer.details)
    context.set_trailing_metadata(tuple(context.trailing_metadata() or ()) + answer.trailing_metadata)
