"""What it costs to watch what programs try: HumanEval programs with and without a trace, one after the other."""

from collections.abc import Sequence
from datetime import timedelta

from crucible_client import EvaluationSpec, Limits
from crucible_client.results import Observation
from crucible_client.suites import humaneval
from crucible_deploy.bench import load
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.samples import p50
from crucible_deploy.bench.stand import WIDE, Stand
from crucible_deploy.stack import Options

_LIMITS = Limits(wall_time=timedelta(seconds=30))
_MOST = 1.10


async def measure(stand: Stand) -> Measured:
    """Each program on a stack with a trace and on one without, neither with a pool, in turns."""
    watched: list[float] = []
    unwatched: list[float] = []
    samples = humaneval.reference_samples()[: stand.sizes.traced]
    async with stand.another(Options(slots=WIDE, pool=0, trace=False)) as (_, untraced):
        for client in (stand.cold, untraced):
            await load.one(client)
        for number, sample in enumerate(samples):
            spec = humaneval.spec(sample, humaneval.new_mark(), _LIMITS)
            sides = [(stand.cold, True, watched), (untraced, False, unwatched)]
            for client, traced, taken in sides if number % 2 else reversed(sides):
                done = await load.one(client, spec)
                _check(done, spec, traced=traced)
                taken.append(done.ms)
    return Measured(tuple(rows(watched, unwatched)))


def rows(watched: Sequence[float], unwatched: Sequence[float]) -> list[Row]:
    """The figures, of times in milliseconds of the same programs."""
    count = f"{len(watched)} programs"
    means = [sum(values) / len(values) for values in (watched, unwatched)]
    middles = [p50(values) for values in (watched, unwatched)]
    return [
        Row(
            "HumanEval, traced: mean of one program", means[0], "ms", means[1], "not traced", "<= 1.10 x",
            met=means[0] <= _MOST * means[1], note=count,
        ),
        Row("HumanEval, traced: p50", middles[0], "ms", middles[1], "not traced", note=count),
    ]  # fmt: skip


def _check(done: load.Done, spec: EvaluationSpec, *, traced: bool) -> None:
    behaviour = done.evaluation.behaviour
    seen = behaviour is not None and behaviour.observation is Observation.OBSERVED
    if seen is not traced:
        what = "not observed" if traced else "observed"
        raise BenchError(f"{spec.labels.get('task')} was {what}: this compares nothing")
