"""What the demo prints: progress bars and tables on a terminal, plain lines in a pipe."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from crucible_client.results import Capabilities
from crucible_client.suites.summary import Summary

_PIPE_WIDTH = 200


@dataclass(frozen=True)
class PassRow:
    """One pass over HumanEval; `faults` says in words what is not as it must be."""

    name: str
    summary: Summary
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it is what it must be."""
        return not self.faults


@dataclass(frozen=True)
class HostileRow:
    """One hostile program: how it ended, the evidence, what the host shows, and what is not as it must be."""

    name: str
    tried: str
    ended: str
    evidence: str
    seen: str
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it is what it must be."""
        return not self.faults


class Report:
    """Prints to stdout; errors to stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or (Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH))

    def say(self, text: str) -> None:
        """One line of what is being done."""
        self._console.print(Text(text), soft_wrap=True)
        self._console.file.flush()  # whoever reads the pipe sees it now

    def error(self, text: str) -> None:
        """Why it cannot go on."""
        sys.stderr.write(f"demo: {text}\n")

    def begin(self, capabilities: Capabilities, address: str) -> None:
        """What the programs will run in."""
        name = capabilities.default_engine
        engine = next((one for one in capabilities.engines if one.name == name), None)
        version = f"{engine.version}, isolation {engine.isolation}" if engine is not None else "unknown"
        self.say(f"the stack is up at {address}; engine {name} ({version})")

    @contextmanager
    def progress(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar that the yielded function advances by one; in a pipe a line at the beginning and at the end."""
        if not self._console.is_terminal:
            self.say(f"{name}: {total} to run")
            yield lambda: None
            self.say(f"{name}: done")
            return
        columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(name, total=total)
            yield lambda: bar.advance(task)

    def finish(self, passes: Sequence[PassRow], hostile: Sequence[HostileRow]) -> None:
        """Both tables and the verdict."""
        for table in (_hostile_table(hostile), _pass_table(passes)):
            if not self._console.is_terminal:
                table.box = box.ASCII2
            self._console.print(table)
        rows: list[PassRow | HostileRow] = [*passes, *hostile]
        faults = [f"{row.name}: {fault}" for row in rows for fault in row.faults]
        for fault in faults:
            self.say(f"NOT AS IT MUST BE  {fault}")
        self.say("the stack is down; nothing of it is left on this machine")
        self.say("all as it must be" if not faults else f"{len(faults)} things are not as they must be")


def _verdict(ok: bool) -> Text:
    return Text("as it must be", style="green") if ok else Text("NOT AS IT MUST BE", style="bold red")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _hostile_table(rows: Sequence[HostileRow]) -> Table:
    table = _table("Hostile programs", "program", "tried", "ended", "evidence", "seen from the host", "verdict")
    for row in rows:
        # Text, not str: what a program caused is never read as markup.
        cells = (row.name, row.tried, row.ended, row.evidence, row.seen or "; ".join(row.faults))
        table.add_row(*map(Text, cells), _verdict(row.ok))
    return table


def _pass_table(rows: Sequence[PassRow]) -> Table:
    table = _table("HumanEval", "pass", "passed", "pass@1", "ended", "per second", "p50", "p95", "verdict")
    for row in rows:
        one = row.summary
        pass_at_1 = one.pass_at.get(1)
        cells = (
            row.name,
            f"{one.passed} of {one.samples}",
            "-" if pass_at_1 is None else f"{pass_at_1:.3f}",
            ", ".join(f"{kind} x {count}" for kind, count in one.ended.items()),
            f"{one.per_second:.1f}",
            _seconds(one.p50_seconds),
            _seconds(one.p95_seconds),
        )
        table.add_row(*map(Text, cells), _verdict(row.ok))
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
