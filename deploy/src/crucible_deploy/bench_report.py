"""The table of the benchmarks."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 160


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: its unit.
        baseline: what it is compared with, in the same unit; None: with nothing.
        baseline_name: what that is.
        target: what the ratio of both should be, in words; empty: there is no target.
        met: whether it is; None without a target.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    baseline_name: str = ""
    target: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """The figure by its baseline."""
        return None if not self.baseline else self.value / self.baseline


def print_rows(rows: Sequence[Row]) -> None:
    """Prints the table to stdout."""
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    table = Table(title="Crucible on this machine", title_justify="left")
    for column in ("what", "measured", "baseline", "ratio", "target", "met"):
        table.add_column(column, overflow="fold")
    for row in rows:
        baseline = "" if row.baseline is None else f"{row.baseline:.1f} {row.unit} ({row.baseline_name})"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
        met = {None: "", True: "yes", False: "NO"}[row.met]
        table.add_row(row.name, f"{row.value:.1f} {row.unit}", baseline, ratio, row.target, met)
    if not console.is_terminal:
        table.box = box.ASCII2
    console.print(table)
    missed = sum(row.met is False for row in rows)
    console.print(f"{sum(row.met is not None for row in rows) - missed} targets met, {missed} missed")
