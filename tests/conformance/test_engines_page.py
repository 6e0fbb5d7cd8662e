"""`docs/ENGINES.md` names every promise there is, and claims nothing that did not run."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.conformance import matrix
from tests.conformance.matrix import Matrix
from tests.conformance.promises import PROMISES

PAGE = Path(__file__).resolve().parents[2] / "docs/ENGINES.md"


def rows(page: str) -> dict[str, list[str]]:
    """The matrix's rows: what stands beside each promise."""
    found = {}
    for line in page.splitlines():
        words, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(PROMISES) and words != "promise" and not words.startswith("--"):
            found[words] = cells
    return found


def test_the_committed_page_names_every_promise_and_what_each_engine_declares():
    committed = rows(PAGE.read_text())
    expected = {row.words: row for _, section in matrix.sections() for row in section}
    assert list(committed) == list(expected), "run `make engines`"
    for words, row in expected.items():
        declared = [row.needed <= promised for promised in PROMISES.values()]
        assert [cell != matrix.NOT_DECLARED for cell in committed[words]] == declared, words


def test_the_committed_page_says_nothing_but_verdicts():
    verdict = re.compile(rf"({'|'.join(matrix.VERDICTS)})( \(.+\))?")
    for words, cells in rows(PAGE.read_text()).items():
        assert all(verdict.fullmatch(cell) for cell in cells), words


def report(when: str, outcome: str, **more: Any) -> Any:
    flags = {name: name == outcome for name in ("passed", "failed", "skipped")}
    return SimpleNamespace(when=when, **flags, **{"user_properties": [], "longrepr": None, **more})


def shown(*reports: Any) -> str:
    """The cell of one promise on one engine after these reports."""
    row = next(row for _, section in matrix.sections() for row in section if not row.needed)
    made = Matrix(Path("/nowhere"))
    for one in reports:
        made.note(row.test, "gvisor", one)
    cell = rows(made.render(datetime.now(UTC)))[row.words][list(PROMISES).index("gvisor")]
    return re.sub(r" \(\d+\)$", "", cell)  # the number of its reason


def test_what_did_not_run_is_never_shown_as_kept():
    passed = report("call", "passed")
    assert shown() == "NOT_RUN"
    assert shown(report("setup", "passed")) == "NOT_RUN"
    assert shown(report("setup", "failed", longrepr="dockerd is missing")) == "NOT_RUN"
    assert shown(passed, report("call", "skipped", longrepr=("file", 1, "no kernel"))) == "NOT_RUN"
    assert shown(passed, report("call", "failed"), passed) == "FAIL"
    assert shown(passed, report("teardown", "failed")) == "FAIL"
    assert shown(passed, passed) == "PASS"
    assert shown(report("call", "passed", user_properties=[(matrix.SEEN_BY, "the host")])) == "PASS (the host)"
    (_, (first, *_)), *_ = matrix.sections()
    page = Matrix(Path("/nowhere")).render(datetime.now(UTC))
    kept = Matrix(Path("/nowhere")).render(datetime(2000, 1, 1, tzinfo=UTC), page)
    assert kept == page  # nothing ran: each section keeps the date of its own run
    assert first.words in kept
    unseen = report("call", "passed", user_properties=[(matrix.VERDICT, matrix.NOT_OBSERVABLE)])
    assert shown(unseen) == "NOT_OBSERVABLE"
