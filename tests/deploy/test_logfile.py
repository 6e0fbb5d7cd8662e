"""Logs that cannot fill the disk."""

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
