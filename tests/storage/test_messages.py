"""Messages between worker and storage that are lost, doubled, delayed, overtaken: each evaluation still ends once."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from crucible_storage import sweeper
from tests.storage.carried import carried
from tests.storage.relay import WAYS, relaying

pytestmark = pytest.mark.slow

SEED = 5
EVALUATIONS = 50


async def test_whatever_becomes_of_messages_each_evaluation_ends_once_and_as_its_program_did(
    tmp_path, databases, monkeypatch
):
    monkeypatch.setattr(sweeper, "INTERVAL", 0.1)
    relays = []

    @asynccontextmanager
    async def between(keys, port):
        async with relaying(keys, port, SEED + len(relays)) as (relay, listening):
            relays.append(relay)
            yield listening

    async with carried(tmp_path, databases, between) as stack:
        await stack.create(EVALUATIONS)
        await stack.ended()
        for relay in relays:
            relay.calm.set()
        await asyncio.gather(*(relay.settled() for relay in relays))
        retried = await stack.judge(databases.backend(tmp_path / "state"))
    happened = sum((relay.happened for relay in relays), Counter())
    assert set(happened) == set(WAYS), f"seed {SEED}: {happened}"
    assert retried, f"seed {SEED}: no attempt was ever lost, so fencing was not tried"
