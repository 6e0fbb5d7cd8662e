"""The conformance matrix, engine by promise, written from the tests that ran: `--engines-md docs/ENGINES.md`.

A promise is a test over the engines; its name is the promise in words. What did not run is never shown as kept. A test
file of which nothing ran leaves its section of the page as it was, with the date of its own run.
"""

from __future__ import annotations

import importlib
import inspect
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from tests.conformance.promises import PROMISES, Needed

FOLDER = Path(__file__).parent
PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT_RUN"
NOT_DECLARED, NOT_OBSERVABLE = "NOT DECLARED", "NOT_OBSERVABLE"
VERDICTS = (PASS, FAIL, NOT_OBSERVABLE, NOT_DECLARED, NOT_RUN)

VERDICT, SEEN_BY, VERSION = "verdict", "seen by", "version"
"""Properties that a test records: a verdict other than PASS, who saw what it is about, an engine's version."""

LEGEND = """\
- PASS: a test of that name ran on that engine and held.
- NOT_OBSERVABLE: a test ran and showed that the limit holds, and that nobody can see whether it refused something; the
  result says so (`unobserved_limits`).
- NOT DECLARED: the engine does not promise it; a request that needs it is refused.
- NOT_RUN: nothing is known, for the reason given below the table. FAIL: a test ran and the promise was broken.

What tells of a refusal stands in brackets: the host's word is the pids cgroup and the host's file system; the sandbox's
kernel and its init are the sandbox's own word."""


@dataclass(frozen=True)
class Row:
    """One promise.

    Attributes:
        test: the name of its test.
        needed: what an engine has to declare for it.
        only: the engines that it is tried with; empty: all that declare it.
        why: why not the others.
    """

    test: str
    needed: frozenset[Needed]
    only: frozenset[str] = frozenset()
    why: str = ""

    @property
    def words(self) -> str:
        """The promise in words."""
        return self.test.removeprefix("test_").replace("_", " ")


def sections() -> Iterator[tuple[str, list[Row]]]:
    """Every promise there is, by test file: its title, and its rows in their order."""
    for file in sorted(FOLDER.glob("test_*.py")):
        module = importlib.import_module(f"tests.conformance.{file.stem}")
        rows = [
            _row(name, module, function)
            for name, function in vars(module).items()
            if name.startswith("test_")
            and inspect.isfunction(function)
            and not {"engine", "engine_name"}.isdisjoint(inspect.signature(function).parameters)
        ]
        if rows:
            yield str(module.__doc__).partition("\n")[0], rows


def _row(name: str, module: ModuleType, function: FunctionType) -> Row:
    needs, only = _mark(module, function, "needs"), _mark(module, function, "only")
    needed = frozenset(needs.args if needs else ())
    return Row(name, needed, frozenset(only.args), str(only.kwargs["why"])) if only else Row(name, needed)


def _mark(module: ModuleType, function: FunctionType, name: str) -> pytest.Mark | None:
    for owner in (function, module):  # as pytest's `get_closest_marker`
        marks = getattr(owner, "pytestmark", [])
        for mark in marks if isinstance(marks, list) else [marks]:
            if mark.name == name:
                return mark.mark if isinstance(mark, pytest.MarkDecorator) else mark
    return None


@dataclass
class Cell:
    """What is known of one promise on one engine."""

    passed: int = 0
    failed: int = 0
    verdict: str = PASS
    notes: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Its verdict: broken once is broken, and partly run is not run."""
        if self.failed:
            return FAIL
        if self.not_run or not self.passed:
            return NOT_RUN
        seen = ", ".join(dict.fromkeys(self.notes))
        return f"{self.verdict} ({seen})" if seen else self.verdict

    @property
    def reason(self) -> str:
        """Why it did not run."""
        return self.not_run[0] if self.not_run else "not part of this run"


class Matrix:
    """Collects what happens to the tests over engines, and writes the page."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._cells: dict[tuple[str, str], Cell] = {}
        self._versions: dict[str, str] = {}

    def note(self, test: str, engine: str, report: pytest.TestReport) -> None:
        """Takes one phase of one test."""
        cell = self._cells.setdefault((test, engine), Cell())
        told = dict(report.user_properties)
        if report.when == "call" and report.passed:
            cell.passed += 1
            cell.verdict = str(told.get(VERDICT, cell.verdict))
            if SEEN_BY in told:
                cell.notes.append(str(told[SEEN_BY]))
            if VERSION in told:
                self._versions[engine] = str(told[VERSION])
        elif report.skipped or (report.failed and report.when == "setup"):
            cell.not_run.append(_first_line(report))
        elif report.failed:
            cell.failed += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """pytest's: every phase of every test."""
        report = yield
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            engine = item.callspec.params.get("engine_name")
            if engine is not None:
                self.note(item.originalname, str(engine), report)
        return report

    def pytest_sessionfinish(self) -> None:
        """pytest's: the last act."""
        before = self._page.read_text() if self._page.exists() else ""
        self._page.write_text(self.render(datetime.now(UTC), before))

    def render(self, now: datetime, before: str = "") -> str:
        """The page; `before` is what it was."""
        head, *kept = before.split("\n## ")
        kept_sections = {section.partition("\n")[0]: section.rstrip("\n") for section in kept}
        lines = [
            "# Engines: the conformance matrix",
            "",
            "Written by `make engines`, or by `pytest tests/conformance/FILE --engines-md docs/ENGINES.md` for one",
            "section alone, from the tests that ran. Not to be edited.",
            "",
            LEGEND,
            "",
            "| engine | version |",
            "|---|---|",
            *(f"| `{engine}` | {self._version(engine, head)} |" for engine in PROMISES),
        ]
        for title, rows in sections():
            name = title.rstrip(".")
            if name in kept_sections and not any(
                (row.test, engine) in self._cells for row in rows for engine in PROMISES
            ):
                lines += ["", f"## {kept_sections[name]}"]
            else:
                lines += ["", f"## {name}", "", f"Ran on {now:%Y-%m-%d}: {machine()}.", "", *self._table(rows)]
        return "\n".join(lines) + "\n"

    def _version(self, engine: str, before: str) -> str:
        shown = [
            line.split(" | ")[1].rstrip(" |") for line in before.splitlines() if line.startswith(f"| `{engine}` | ")
        ]
        return self._versions.get(engine) or (shown[0] if shown else NOT_RUN)

    def _table(self, rows: list[Row]) -> Iterator[str]:
        reasons: dict[str, int] = {}
        yield "| promise | " + " | ".join(PROMISES) + " |"
        yield "|---|" + "---|" * len(PROMISES)
        for row in rows:
            shown = (self._shown(row, engine, reasons) for engine in PROMISES)
            yield f"| {row.words} | " + " | ".join(shown) + " |"
        if reasons:
            yield ""
        yield from (f"{number}. {reason}" for reason, number in reasons.items())

    def _shown(self, row: Row, engine: str, reasons: dict[str, int]) -> str:
        if not row.needed <= PROMISES[engine]:
            return NOT_DECLARED
        cell = self._cells.get((row.test, engine), Cell())
        if str(cell) != NOT_RUN:
            return str(cell)
        reason = row.why if row.only and engine not in row.only else cell.reason
        return f"{NOT_RUN} ({reasons.setdefault(reason, len(reasons) + 1)})"


def _first_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2]).partition("\n")[0]
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr).partition("\n")[0][:200]


def machine() -> str:
    """This machine in a few words."""
    return f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs"
