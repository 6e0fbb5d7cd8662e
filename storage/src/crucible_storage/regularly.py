"""What storage does by itself every so often, and goes on doing whatever happens."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from crucible_rpc.errors import CallError

_LOG = logging.getLogger(__name__)


async def regularly(seconds: float, look: Callable[[], Awaitable[object]], failed: str) -> None:
    """Waits and looks, until cancelled. A look that fails is logged, and the next is made as ever.

    Args:
        seconds: before each look.
        look: what is done.
        failed: what is logged of a look that raised, in front of the reason.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            await look()
        except CallError as error:
            _LOG.warning("%s: %s", failed, error)
        except Exception:  # nobody starts it again: it must outlive what nobody foresaw
            _LOG.exception("%s; trying again", failed)
