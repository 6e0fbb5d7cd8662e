"""The short form of `make chaos`: the same kinds of faults, the same judges."""

from crucible_deploy.chaos.faults import kill, kill_two, pause
from crucible_deploy.chaos.harness import chaos
from crucible_deploy.layout import PROCESSES, Layout
from crucible_deploy.paths import Paths

SEED = 20261122


async def test_every_promise_holds_while_processes_are_killed_and_paused():
    faults = [*(kill(process) for process in PROCESSES), kill_two(), pause("executor", 1, 2, 2)]
    said = []
    found = await chaos(Layout(Paths()), said.append, seed=SEED, count=80, faults=faults, calm=(0.5, 2.0))
    assert not found.wrong, (SEED, found.wrong, said)
    assert found.accepted > 80  # the long ones too
    assert found.faults.total() >= 3, "hardly anything happened: nothing was proved"
    assert found.given_up <= found.retried
