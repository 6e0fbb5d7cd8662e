"""What storage does by itself goes on whatever a look raises, and says what it was."""

import asyncio
import logging

import pytest

from crucible_rpc.errors import UnavailableError
from crucible_storage.regularly import regularly


async def test_failed_look_is_logged_and_the_next_is_made(caplog: pytest.LogCaptureFixture):
    raised = [UnavailableError("ARTIFACT_STORE_UNAVAILABLE", "away"), ValueError("nobody foresaw it")]
    made = asyncio.Event()

    async def look() -> None:
        if raised:
            raise raised.pop(0)
        made.set()

    with caplog.at_level(logging.WARNING):
        task = asyncio.ensure_future(regularly(0, look, "it was not done"))
        async with asyncio.timeout(20):
            await made.wait()
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    foreseen, surprise = caplog.records
    assert "it was not done: " in foreseen.message
    assert "away" in foreseen.message
    assert foreseen.exc_info is None
    assert surprise.message == "it was not done; trying again"
    assert surprise.exc_info is not None
