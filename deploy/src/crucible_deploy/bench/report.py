"""The tables of the benchmarks."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from rich import box
from rich.console import Console
from rich.table import Table

from crucible_deploy.bench.machine import Machine
from crucible_deploy.bench.peers.model import Compared

_PIPE_WIDTH = 170


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure; None: it could not be had.
        unit: its unit.
        baseline: what it is compared with, in the same unit; None: with nothing.
        baseline_name: what that is.
        target: what should be, in words; empty: there is no target.
        met: whether it is; None without a target.
        note: what else a reader must know, as how many samples there were.
        failed: whether the figure is missing because something went wrong.
    """

    name: str
    value: float | None
    unit: str = ""
    baseline: float | None = None
    baseline_name: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""
    failed: bool = False

    @classmethod
    def failure(cls, name: str, reason: str) -> "Row":
        """The row of what could not be measured; it fails the command."""
        return cls(name, None, note=reason, failed=True)

    @classmethod
    def left_out(cls, name: str, reason: str) -> "Row":
        """The row of what was not measured by intention."""
        return cls(name, None, note=reason)

    @property
    def ratio(self) -> float | None:
        """The figure by its baseline."""
        return None if not self.baseline or self.value is None else self.value / self.baseline


@dataclass(frozen=True)
class Measured:
    """What one subject brought.

    Attributes:
        rows: figures.
        compared: sandboxes side by side; only the subject `peers` has any.
    """

    rows: tuple[Row, ...] = ()
    compared: tuple[Compared, ...] = ()


@dataclass(frozen=True)
class Section:
    """One subject's part of the report; `seconds` is how long it took."""

    name: str
    measured: Measured
    seconds: float


@dataclass(frozen=True)
class Report:
    """Everything that one run of the benchmarks found."""

    machine: Machine
    sections: tuple[Section, ...] = field(default=())

    def with_section(self, section: Section) -> "Report":
        """This and one more subject."""
        return replace(self, sections=(*self.sections, section))

    @property
    def rows(self) -> list[Row]:
        """Of all subjects."""
        return [row for section in self.sections for row in section.measured.rows]

    @property
    def compared(self) -> list[Compared]:
        """Of all subjects."""
        return [one for section in self.sections for one in section.measured.compared]

    @property
    def failed(self) -> int:
        """How many figures are missing because something went wrong."""
        return sum(row.failed for row in self.rows) + sum(one.failed for one in self.compared)

    @property
    def missed(self) -> int:
        """How many targets were missed."""
        return sum(row.met is False for row in self.rows)

    @property
    def met(self) -> int:
        """How many targets were met."""
        return sum(row.met is True for row in self.rows)

    def exit_code(self, *, strict: bool) -> int:
        """0, or 1 when a figure is missing or, if `strict`, a target was missed."""
        return 1 if self.failed or (strict and self.missed) else 0

    def as_json(self) -> str:
        """All of it."""
        sections = [
            {
                "name": section.name,
                "seconds": round(section.seconds, 1),
                "rows": [asdict(row) | {"ratio": row.ratio} for row in section.measured.rows],
                "compared": [one.as_record() for one in section.measured.compared],
            }
            for section in self.sections
        ]
        machine = asdict(self.machine) | {"was_busy": self.machine.was_busy}
        counts = {"met": self.met, "missed": self.missed, "failed": self.failed}
        return json.dumps({"machine": machine, "sections": sections, **counts}, indent=1)


def print_report(report: Report) -> None:
    """Prints the tables to stdout."""
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    for table in _tables(report):
        if not console.is_terminal:
            table.box = box.ASCII2
        console.print(table)
    for line in report.machine.lines():
        console.print(line, highlight=False)
    seconds = ", ".join(f"{section.name} {section.seconds:.0f} s" for section in report.sections)
    console.print(f"{seconds}; together {sum(one.seconds for one in report.sections):.0f} s", highlight=False)
    failed = f", {report.failed} could not be measured" if report.failed else ""
    console.print(f"{report.met} targets met, {report.missed} missed{failed}", highlight=False)


def _tables(report: Report) -> list[Table]:
    tables = [_figures(report.sections)] if report.rows else []
    return [*tables, _speeds(report.compared), _isolation(report.compared)] if report.compared else tables


def _figures(sections: Sequence[Section]) -> Table:
    table = Table(title="Crucible on this machine", title_justify="left")
    for column in ("what", "measured", "baseline", "ratio", "target", "met", "note"):
        table.add_column(column, overflow="fold")
    for section in sections:
        for row in section.measured.rows:
            table.add_row(*_cells(row))
        table.add_section()
    return table


def _cells(row: Row) -> tuple[str, ...]:
    measured = "FAILED" if row.failed else "not measured" if row.value is None else f"{_number(row.value)} {row.unit}"
    baseline = "" if row.baseline is None else f"{_number(row.baseline)} {row.unit} ({row.baseline_name})"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
    met = {None: "", True: "yes", False: "NO"}[row.met]
    return row.name, measured, baseline, ratio, row.target, met, row.note


def _number(value: float) -> str:
    return f"{value:.3f}" if 0 < abs(value) < 1 else f"{value:.1f}"


def _speeds(compared: Sequence[Compared]) -> Table:
    table = Table(title="One trivial program at a time, and 4 at once, side by side", title_justify="left")
    for column in ("what", "median", "p95", "runs/s 4-wide", "note"):
        table.add_column(column, overflow="fold")
    for one in compared:
        if one.reason:
            table.add_row(one.name, "FAILED" if one.failed else "not run", "", "", one.reason)
        else:
            table.add_row(
                one.name, f"{one.median_ms:.1f} ms", f"{one.p95_ms:.1f} ms", f"{one.per_second:.1f}", one.note
            )
    return table


def _isolation(compared: Sequence[Compared]) -> Table:
    table = Table(title="What isolation each gave, as a program inside sees it", title_justify="left")
    seen = [one for one in compared if one.inside is not None]
    columns = ["what", *(dict.fromkeys(key for one in seen if one.inside for key in one.inside))]
    for column in columns:
        table.add_column(column, overflow="fold")
    for one in seen:
        inside = one.inside or {}
        table.add_row(one.name, *(inside.get(column, "") for column in columns[1:]))
    return table
