"""A PostgreSQL server that stops, crashes or cuts connections while workers carry work: each promise holds."""

import asyncio

import pytest

from crucible_storage import sweeper
from tests.storage.carried import carried

EVALUATIONS = 40
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"

pytestmark = pytest.mark.database("postgresql")


async def restarted(server, database):
    await asyncio.to_thread(server.postgresql.stop)
    server.postgresql.start()  # by this thread, with which it would end


async def crashed(server, database):
    await asyncio.to_thread(server.postgresql.kill)
    server.postgresql.start()  # by this thread, with which it would end


async def cut_again_and_again(server, database):
    for _ in range(8):
        await asyncio.to_thread(server.execute, CUT.format(database))
        await asyncio.sleep(0.05)


async def test_every_promise_holds_while_the_server_goes_away(tmp_path, databases, monkeypatch):
    monkeypatch.setattr(sweeper, "INTERVAL", 0.1)
    database = databases.url(tmp_path / "state").partition("?")[0].rpartition("/")[2]
    async with carried(tmp_path, databases) as stack:
        for fault in (cut_again_and_again, restarted, crashed):
            creating = asyncio.create_task(stack.create(EVALUATIONS))
            begun = stack.ledger.starts.total()
            async with asyncio.timeout(60):
                while stack.ledger.starts.total() < begun + 5:  # noqa: ASYNC110  # the engine has no event for it
                    await asyncio.sleep(0.01)
            await fault(databases.server, database)
            await creating
        await stack.ended()
        await stack.judge(databases.backend(tmp_path / "state"))
        assert stack.ledger.starts.total() >= 3 * EVALUATIONS
