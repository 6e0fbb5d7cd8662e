"""The result of the chaos as people read it: what happened, and a verdict for each promise."""

from collections import Counter
from collections.abc import Iterator

from crucible_deploy.chaos.judge import Promise
from crucible_deploy.chaos.result import Chaos

_SHOWN = 20


def lines(found: Chaos) -> Iterator[str]:
    """The report."""
    yield (
        f"seed {found.seed}, {found.database}: {found.accepted} evaluations in {found.seconds:.0f} s, "
        f"{found.starts} starts, {found.looks} looks at what lives"
    )
    if found.time_over:
        yield f"the time was over before all {found.asked} programs had begun, or every fault had happened"
    yield f"{found.retried} needed more than one attempt, {found.given_up} failed for the infrastructure at their last"
    yield f"{found.faults.total()} faults:"
    yield from (f"  {times:4d} x {name}" for name, times in sorted(found.faults.items()))
    broken = Counter(one.promise for one in found.wrong)
    for promise in Promise:
        yield f"{'BROKEN' if broken[promise] else 'held  '}  {promise}"
    yield from (f"WRONG: {one.text}" for one in found.wrong[:_SHOWN])
    if len(found.wrong) > _SHOWN:
        yield f"and {len(found.wrong) - _SHOWN} more"
    yield "every promise held" if not found.wrong else "FAILED"
