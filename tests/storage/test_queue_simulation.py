"""The stated longest wait and the fair share, over half an hour of simulated load; QUEUE.md names the day's command."""

from dataclasses import replace

import pytest

from crucible_storage import fairness, queue_simulation
from crucible_storage.simulated_load import SHORT, arrivals

pytestmark = pytest.mark.database("sqlite")  # in memory


@pytest.fixture(scope="module")
def figures():
    return queue_simulation.simulate(SHORT, seed=1)


def test_everything_is_served_within_what_is_stated(figures):
    assert figures.exceeded() == []
    assert sum(map(len, figures.waits.values())) == len(arrivals(SHORT, 1)) > 3000


def test_the_measure_sees_waits_and_shares_that_are_wrong(figures):
    print(queue_simulation.table(figures, 1))
    wrong = replace(figures, of_bound=dict.fromkeys(figures.of_bound, 1.1))
    assert len(wrong.exceeded()) == len(figures.waits)
    halved = {name: replace(one, had=one.had / 2) if name == "paying" else one for name, one in figures.tenants.items()}
    assert any("paying" in text for text in replace(figures, tenants=halved).exceeded())


def test_an_order_without_weights_is_found_out(monkeypatch):
    """The control: the same load, with every weight taken for 1."""
    monkeypatch.setattr(fairness.Fairness, "_place", lambda self, share: (share.running, share.tenant))
    short = replace(SHORT, hours=0.25)
    assert any("paying" in text for text in queue_simulation.simulate(short, seed=1).exceeded())
