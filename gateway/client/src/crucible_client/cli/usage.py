"""How `crucible get --usage` shows what a run used over time."""

from collections.abc import Sequence

import click

from crucible_client.cli.output import print_rows, printable, show_seconds
from crucible_client.cli.sizes import show_size
from crucible_client.results import Observation
from crucible_client.usage_samples import UsagePoint, UsageSamples, cpus

_WIDTH = 60
_BARS = "▁▂▃▄▅▆▇█"


def show(found: UsageSamples) -> None:
    """Three curves over the run's time, each with its highest value; or why there are none."""
    if found.observation is not Observation.OBSERVED:
        click.echo(f"{found.observation}: {printable(found.reason)}")
    elif not found.points:
        click.echo("it ended before the first sample was due")
    if not found.points:
        return
    points = found.points
    busy = cpus(points)
    most_busy = max((one for one in busy if one is not None), default=None)
    memory, tasks = max(one.max_memory_bytes for one in points), max(one.max_tasks for one in points)
    last = points[-1]
    rows = [
        ("CPUs", curve(points, busy), "-" if most_busy is None else f"at most {most_busy:.2f}"),
        ("memory", curve(points, [one.max_memory_bytes for one in points]), f"at most {show_size(memory)}"),
        ("tasks", curve(points, [one.max_tasks for one in points]), f"at most {tasks}"),
        ("time", f"0 to {show_seconds(last.since_start)}", f"{sum(one.samples for one in points)} samples"),
        ("CPU time", show_seconds(last.cpu_time), f"attempt {found.attempt}"),
    ]
    print_rows(("", "", ""), rows)


def curve(points: Sequence[UsagePoint], values: Sequence[float | None]) -> str:
    """Bars of equal time from the program's start to the last point, from 0 to the highest; blank: not known."""
    length = points[-1].since_start.total_seconds()
    cells: list[float | None] = [None] * _WIDTH
    begin = 0.0
    for point, value in zip(points, values, strict=True):
        end = point.since_start.total_seconds()
        first, last = (min(_WIDTH - 1, int(_WIDTH * at / length)) if length else 0 for at in (begin, end))
        begin = end
        for cell in range(first, last + 1) if value is not None else ():
            cells[cell] = max(cells[cell] or 0.0, value or 0.0)
    most = max((one for one in cells if one is not None), default=0.0) or 1.0
    return "".join(" " if one is None else _BARS[round(one / most * (len(_BARS) - 1))] for one in cells)
