"""Logs that cannot fill the disk."""

import os
from pathlib import Path

from crucible_deploy.logfile import MAX_LINE_BYTES, LineSplitter, LogFile


def test_a_log_keeps_two_files_of_a_bounded_size(tmp_path):
    log = LogFile(tmp_path / "a.log", max_bytes=1000)
    for number in range(500):
        log.write(f"line {number:04}".encode())
    log.close()
    assert (tmp_path / "a.log").read_text().endswith("line 0498\nline 0499\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_begun_anew_goes_on_where_it_is(tmp_path, monkeypatch):
    log = LogFile(tmp_path / "a.log", max_bytes=20)
    log.write(b"0123456789")
    with monkeypatch.context() as none_left:
        none_left.setattr("crucible_deploy.logfile.os.open", lambda *_: (_ for _ in ()).throw(OSError(24, "too many")))
        log.write(b"lost, for it would be too much")
        other = os.dup(0)  # takes the lowest free descriptor
    log.write(b"0123456789")
    log.close()
    assert (tmp_path / "a.log").read_text() == (tmp_path / "a.log.1").read_text() == "0123456789\n"
    os.close(other)


def test_lines_are_cut_where_they_end_and_where_they_are_too_long():
    splitter = LineSplitter()
    assert splitter.feed(b"a\nb") == [b"a"]
    assert splitter.feed(b"c\n\n") == [b"bc", b""]
    assert splitter.feed(b"x" * (MAX_LINE_BYTES + 5)) == [b"x" * MAX_LINE_BYTES]
    assert splitter.end() == [b"x" * 5]
    assert splitter.end() == []
    long = splitter.feed(b"y" * (3 * MAX_LINE_BYTES) + b"\n")
    assert b"".join(long) == b"y" * (3 * MAX_LINE_BYTES)
    assert max(map(len, long)) == MAX_LINE_BYTES


def test_a_full_disk_stops_nobody():
    log = LogFile(Path("/dev/full"))
    log.write(b"lost")
    log.close()
