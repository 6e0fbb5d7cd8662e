"""Many programs at the same moment: a burst that the pool can serve, and far more than it can."""

import secrets
from collections.abc import Sequence

from crucible_client import State
from crucible_deploy.bench import load
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.samples import p50, p95, p99
from crucible_deploy.bench.stand import POOL, WIDE, Stand


async def measure(stand: Stand) -> Measured:
    """Bursts from a full pool, then a hundred at once."""
    sizes = stand.sizes
    bursts: list[load.Many] = []
    bare_s = 0.0
    for number in range(sizes.bursts):
        await stand.full()
        bursts.append(await load.many(stand.client, [load.trivial()] * sizes.burst, WIDE))
        await stand.full()
        bare_s += await stand.bare.many(f"burst{number}", sizes.burst, WIDE)
    await stand.full()
    label = secrets.token_hex(8)
    specs = [load.python(load.PROGRAM, labels={"bench": label})] * sizes.at_once
    at_once = await load.many(stand.client, specs, sizes.at_once)
    lost = sizes.at_once - await _succeeded(stand, label)
    await stand.full()
    bare_at_once = await stand.bare.many("atonce", sizes.at_once, WIDE)
    if lost:
        raise BenchError(f"{lost} of {sizes.at_once} evaluations are not SUCCEEDED in storage's own list")
    burst_rate = sizes.burst * sizes.bursts / bare_s
    return Measured(tuple(rows(bursts, sizes.burst, burst_rate, at_once, sizes.at_once / bare_at_once)))


async def _succeeded(stand: Stand, label: str) -> int:
    """How many different evaluations with this label storage lists as SUCCEEDED; all others are lost or doubled."""
    listed = [one async for one in stand.client.list(labels={"bench": label})]
    if len(listed) > stand.sizes.at_once:
        raise BenchError(f"{len(listed)} evaluations were made of {stand.sizes.at_once} calls")
    return sum(one.state is State.SUCCEEDED for one in listed)


def rows(
    bursts: Sequence[load.Many], size: int, bare_rate: float, at_once: load.Many, bare_at_once_rate: float
) -> list[Row]:
    """The figures; rates are programs per second."""
    burst = load.combined(bursts)
    bare = f"xargs -P {WIDE} runsc run"
    count = f"{len(bursts)} bursts, {burst.warm} of {len(burst.done)} warm"
    many = f"{len(at_once.done)} submitted at once"
    warm = f"{at_once.warm} warm"
    return [
        Row(
            f"burst of {size} from a pool of {POOL}, {WIDE}-wide",
            burst.per_second,
            "per s",
            bare_rate,
            bare,
            note=count,
        ),
        Row("burst: p50", p50(burst.ms), "ms", note=count),
        Row("burst: p95", p95(burst.ms), "ms", note=count),
        Row(many, at_once.per_second, "per s", bare_at_once_rate, bare, note=warm),
        Row(f"{many}: lost", 0, f"of {len(at_once.done)}", target="0", met=True, note="by storage's own list"),
        Row(f"{many}: p50", p50(at_once.ms), "ms"),
        Row(f"{many}: p95", p95(at_once.ms), "ms"),
        Row(f"{many}: p99", p99(at_once.ms), "ms"),
        Row(f"{many}: worst", max(at_once.ms), "ms"),
    ]
