"""The cache with the counting runsc: made for one process, and removed when that left it behind."""

import os
import subprocess

import pytest

from crucible_deploy.chaos import counted_runsc
from crucible_deploy.chaos.counted_runsc import CountedRunsc


@pytest.fixture
def parent(tmp_path, monkeypatch):
    monkeypatch.setattr(counted_runsc, "_PARENT", tmp_path)
    return tmp_path


def test_what_a_killed_maker_left_is_removed_and_what_a_living_one_has_is_not(parent, tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    left = parent / f"crucible-counted-{ended.pid}-x" / "starts"
    left.mkdir(parents=True)
    first = CountedRunsc.make(tmp_path)
    second = CountedRunsc.make(tmp_path)
    assert {one.name for one in parent.iterdir()} == {first.cache.name, second.cache.name}
    assert str(os.getpid()) in first.cache.name


def test_starts_are_counted_by_the_mark_of_the_program(parent, tmp_path):
    runsc = CountedRunsc.make(tmp_path)
    assert runsc.by_mark() == {}
    for sandbox, mark in (("s1", b"7"), ("s2", b"7"), ("s3", b"long0")):
        (runsc.starts / f"{sandbox}.program").write_bytes(b"# " + counted_runsc.MARK + mark + b"'\nimport time\n")
    (runsc.starts / "starts").write_text("1.0 s1\n2.0 s2\n3.0 s3\n")
    assert runsc.by_mark() == {"7": ["s1", "s2"], "long0": ["s3"]}
    runsc.remove()
    assert not runsc.cache.exists()
