"""`make bench`, so short that its figures mean nothing: every subject finds what it measures."""

import json
import subprocess
import sys

import pytest

SUBJECTS = ("idle", "warm", "burst", "throughput", "trace", "control-plane", "batches", "memory")
"""The others (storage alone, neighbours, what it is compared with) have tests of their own."""


@pytest.mark.alone  # it starts three stacks, and keeps both CPUs busy
def test_every_subject_measures_something():
    only = [option for subject in SUBJECTS for option in ("--only", subject)]
    command = [sys.executable, "-m", "crucible_deploy.bench", "--tiny", "--json", *only]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == 0, done.stderr
    measured = [section for section in found["sections"] if section["rows"]]
    assert [section["name"] for section in measured] == list(SUBJECTS)
    for section in measured:
        assert all(row["value"] is not None and row["value"] >= 0 for row in section["rows"]), section
