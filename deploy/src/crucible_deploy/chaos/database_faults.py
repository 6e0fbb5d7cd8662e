"""What is done to the PostgreSQL server that a stack's storage uses."""

import asyncio
import random

from crucible_deploy.chaos.faults import Fault, Scene
from crucible_deploy.chaos.judge import Wrong
from crucible_deploy.postgresql_server import PostgreSqlServer

_CUTS = 20
_CUT = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'crucible'"


def database_faults(server: PostgreSqlServer) -> list[Fault]:
    """Every fault of the database."""
    return [_restart(server), _crash(server), _cut(server)]


def _restart(server: PostgreSqlServer) -> Fault:
    """As `systemctl restart` does it, with a moment in between."""

    async def happen(scene: Scene, chance: random.Random) -> list[Wrong]:
        del scene
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(chance.uniform(0, 3))
        server.start()  # by this thread, with which it would end
        return []

    return Fault("restart PostgreSQL", 3, happen)


def _crash(server: PostgreSqlServer) -> Fault:
    """All its processes end at once; the next start recovers from its log."""

    async def happen(scene: Scene, chance: random.Random) -> list[Wrong]:
        del scene
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(chance.uniform(0, 1))
        server.start()  # by this thread, with which it would end
        return []

    return Fault("crash PostgreSQL", 3, happen)


def _cut(server: PostgreSqlServer) -> Fault:
    """Every connection is cut, again and again within a few seconds, so that some cuts meet a transaction."""

    async def happen(scene: Scene, chance: random.Random) -> list[Wrong]:
        del scene
        for _ in range(_CUTS):
            await asyncio.to_thread(server.execute, _CUT)
            await asyncio.sleep(chance.uniform(0, 0.2))
        return []

    return Fault("cut PostgreSQL's connections", 4, happen)
