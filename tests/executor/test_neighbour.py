"""The measurement of what a neighbour keeps: it counts on the host, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_executor import neighbour
from crucible_executor.neighbour import Row
from tests.conformance.harness import processes_named

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))


@pytest.mark.root
@pytest.mark.alone
def test_every_limit_has_a_row_with_what_others_used_and_nothing_is_left(tmp_path: Path):
    built = subprocess.run([ROOT / "executor/init/build.sh", tmp_path], check=True, capture_output=True, text=True)
    settings = {
        "CRUCIBLE_EXECUTOR_RUNSC": str(sorted((CACHE / "runsc").glob("*/runsc"))[-1]),
        "CRUCIBLE_EXECUTOR_INIT_DIR": built.stdout.strip(),
        "CRUCIBLE_EXECUTOR_IMAGES_DIR": str(CACHE / "images"),
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_EXECUTOR_")}
    done = subprocess.run(
        [sys.executable, "-m", "crucible_executor.neighbour", "--rounds=1", "--seconds=0.3", "--json"],
        env=others | settings, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1, 4), done.stderr  # a busy machine may not keep the promise in so short a time
    rows = [Row(**row) for row in json.loads(done.stdout)]
    assert [row.limit for row in rows] == list(neighbour.HOGS)
    assert all(row.alone > 0 and row.beside > 0 and row.ratio > 0 and row.hogs >= 1 for row in rows)
    assert all(row.others_cpus >= 0 for row in rows)
    assert processes_named("crucible-neighbour-") == []
    assert list(Path("/dev/shm").glob("crucible-neighbour-*")) == []
    assert list(Path("/sys/fs/cgroup").glob("*/crucible-neighbour-*")) == []


def test_the_table_says_what_was_kept():
    text = neighbour.table([Row.of("CPU", 100.0, 92.5, 0.925, 3, 0.04)])
    assert "| CPU | 100.0 | 92.5 | 0.93x | yes | 3 | 0.04 |" in text


@pytest.mark.parametrize(
    ("cpus", "others", "ratio", "kept"),
    [(2, 0.1, 0.85, True), (2, 0.1, 0.84, False), (2, 0.2, 1.5, None), (2, 1.0, 0.5, None), (4, 1.9, 0.9, True)],
)
def test_a_ratio_is_judged_only_where_both_programs_had_their_cpus(monkeypatch, cpus, others, ratio, kept):
    monkeypatch.setattr(neighbour.os, "cpu_count", lambda: cpus)
    row = Row.of("disk", 100.0, 100.0 * ratio, ratio, 1, others)
    assert row.kept is kept
    assert neighbour._exit_code([row]) == {True: 0, False: 1, None: 4}[kept]
