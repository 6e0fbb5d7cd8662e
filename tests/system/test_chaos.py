"""The short form of `make chaos`: the same faults, each once, the same judges."""

from datetime import timedelta

from crucible_deploy.chaos.faults import cut_off, kill, kill_two, pause
from crucible_deploy.chaos.harness import chaos
from crucible_deploy.layout import PROCESSES, Layout
from crucible_deploy.paths import Paths
from crucible_deploy.stack import Leases

SEED = 20261122
LEASES = Leases(timedelta(seconds=3), timedelta(seconds=4.5))


async def test_every_promise_holds_while_processes_are_killed_paused_and_cut_off():
    # Cut off, the worker is paused beyond its lease as well.
    faults = [*(kill(process) for process in PROCESSES), kill_two(), pause("executor", 1, 2, 1), cut_off()]
    said = []
    found = await chaos(
        Layout(Paths()), said.append, seed=SEED, count=20, faults=faults, calm=(0.2, 0.8), lanes=3, long_seconds=4,
        leases=LEASES,
    )  # fmt: skip
    assert not found.wrong, (SEED, found.wrong, said)
    assert all(found.faults[one.name] for one in faults)
    assert not found.time_over
    assert found.accepted > 20  # the long ones too
    assert found.starts >= found.accepted
    assert found.retried, "no fault met a run: nothing was proved"
    assert found.given_up <= found.retried
