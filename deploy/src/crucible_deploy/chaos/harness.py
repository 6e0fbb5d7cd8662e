"""A stack of its own with a counted runsc, the programs and faults, and the judgement when all is over."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

from crucible_client.results import InfrastructureFailure
from crucible_deploy import host
from crucible_deploy.chaos import proofs
from crucible_deploy.chaos.alive import Watcher
from crucible_deploy.chaos.counted_runsc import CountedRunsc
from crucible_deploy.chaos.faults import Fault, Scene
from crucible_deploy.chaos.judge import Promise, Wrong, wrongs
from crucible_deploy.chaos.result import Chaos
from crucible_deploy.chaos.storm import Storm
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from crucible_deploy.postgresql_server import PostgreSqlServer
from crucible_deploy.private_stack import private_stack
from crucible_deploy.stack import Leases, Options

SLOTS = 6
WITHIN = timedelta(minutes=40)
_GONE_SECONDS = 20.0


async def chaos(
    common: Layout,
    say: Callable[[str], None],
    *,
    seed: int,
    count: int,
    faults: list[Fault],
    calm: tuple[float, float] = (1.0, 6.0),
    lanes: int = 10,
    long_seconds: float = 25.0,
    leases: Leases | None = None,
    server: PostgreSqlServer | None = None,
    within: timedelta = WITHIN,
) -> Chaos:
    """Runs programs while faults happen: at least `count`, and until each fault has happened, but in bounded time.

    Args:
        common: the user's own layout; its cache is used, nothing of it is changed.
        say: told of every fault and of the progress.
        seed: of the programs and the faults.
        count: programs, of at most 1.2 s each; beside them a long one runs at any time.
        faults: each happens once, in an order of chance, then again by weight.
        calm: least and most seconds between two faults.
        lanes: programs that are under way at once, beside the long one.
        long_seconds: of the long programs.
        leases: how long they last; None: as by default.
        server: has the database, in place of a file.
        within: no program begins later than this after the first; those that began are judged.

    Raises:
        ChaosError: the stack did not come back.
        PrepareError and its like: it cannot be started here.
    """
    found = Chaos(seed, count, "SQLite" if server is None else "PostgreSQL")
    found.faults.update({one.name: 0 for one in faults})
    runsc = CountedRunsc.make(common.paths.cache)
    try:
        counted = Layout(Paths(common.paths.home, runsc.cache, common.paths.run), common.port_offset)
        # With a pool a sandbox would live before its run, and its start would be no start of a program.
        options = Options(slots=SLOTS, pool=0, leases=leases)
        async with private_stack(counted, options, say, server=server) as stack:
            async with stack.client() as client:
                max_attempts = (await client.capabilities()).max_attempts
            with Watcher(stack.layout) as watcher:
                scene = Scene(stack, watcher, runsc, leases or Leases())
                ended = await Storm(scene, found, faults, calm, lanes, long_seconds, within, say).run()
                left = await asyncio.to_thread(host.wait_for_none, stack.layout, _GONE_SECONDS)
            found.wrong += [Wrong(Promise.GONE, f"left on the host: {left}")] if left else []
            async with stack.client() as client:
                found.wrong += await proofs.failed(stack.layout, client)
            starts = runsc.by_mark()
            found.wrong += wrongs(ended, starts, watcher, max_attempts=max_attempts, endless=found.endless)
            found.starts, found.looks = len(runsc.sandboxes()), watcher.looks
    finally:
        runsc.remove()
    found.retried = sum(bool(one.evaluation.failed_attempts) for one in ended)
    found.given_up = sum(isinstance(one.evaluation.termination, InfrastructureFailure) for one in ended)
    return found
