"""What is said to the sandbox's init, and what is believed of it."""

from __future__ import annotations

import struct
from datetime import timedelta

import pytest

from crucible_executor.engines.base import ProgramRefusedError
from crucible_executor.init_protocol import (
    MAX_FILES,
    Channel,
    FrameReader,
    ProtocolError,
    ReportKind,
    ReportReader,
    check_path,
    describe_refusal,
    encode,
)
from crucible_executor.model import File, Limits, Program

LIMITS = Limits(timedelta(seconds=1), None, 1, 1 << 26, 7, 9, 1024, 1 << 20, None)


def record(kind: int, a: int = 0, b: int = 0, user: int = 0, system: int = 0, rss: int = 0, full: int = 0) -> bytes:
    return struct.pack("<4sIIIQQQQ16x", b"RPRT", kind, a, b, user, system, rss, full)


def test_frame_holds_counts_strings_files_and_stdin_in_order():
    program = Program(("/bin/x", "é"), (File("a/b", b"\0\1"),), {"K": "v=w"}, b"in")
    frame = b"".join(encode(program, LIMITS))
    head = struct.pack("<8sIIIIIIQQ", b"CRUINIT2", 2, 1, 1, 7, 9, 0, 0, 2)
    strings = b"".join(struct.pack("<I", len(s)) + s for s in (b"/bin/x", "é".encode(), b"K=v=w", b"a/b"))
    assert frame == head + strings + struct.pack("<Q", 2) + b"\0\1" + b"in" + b"END!"


def test_records_are_found_however_they_are_cut():
    reader = ReportReader()
    data = record(1) + record(3, 1, 11, 250_000, 50_000, 2048, 3)
    found = [report for index in range(len(data)) for report in reader.feed(data[index : index + 1])]
    assert [report.kind for report in found] == [ReportKind.READY, ReportKind.ENDED]
    ended = found[1]
    assert (ended.signalled, ended.b, ended.max_rss_bytes) == (True, 11, 2 << 20)
    assert ended.user_cpu + ended.system_cpu == timedelta(milliseconds=300)
    assert ended.workspace_full
    assert ended.tmp_full


def frame(channel: int, data: bytes) -> bytes:
    return struct.pack("<II", channel, len(data)) + data


def test_channels_of_a_multiplexed_init_are_found_however_they_are_cut():
    data = frame(0, record(1)) + frame(1, b"out") + frame(2, b"err" * 9) + frame(1, b"x" * 65536)
    for step in (1, 5, 64, 1 << 20):
        reader, found = FrameReader(), dict.fromkeys(Channel, b"")
        for at in range(0, len(data), step):
            for channel, part in reader.feed(data[at : at + step]):
                found[channel] += part
        assert found == {Channel.REPORTS: record(1), Channel.STDOUT: b"out" + b"x" * 65536, Channel.STDERR: b"err" * 9}


@pytest.mark.parametrize(
    "bad", [frame(3, b"x"), frame(1, b""), frame(1, b"x" * 65537), struct.pack("<II", 0, 2**32 - 1), b"HTTP/1.1"]
)
def test_a_frame_that_is_none_of_the_inits_is_refused(bad: bytes):
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(bad))


@pytest.mark.parametrize("bad", [b"\0" * 64, record(0), record(6), record(99), b"HTTP/1.1 200 OK\r\n".ljust(64, b"x")])
def test_a_record_that_is_none_of_the_inits_is_refused(bad: bytes):
    with pytest.raises(ProtocolError):
        list(ReportReader().feed(bad))


def test_endless_records_are_refused():
    with pytest.raises(ProtocolError):
        list(ReportReader().feed(record(1) * 1000))


def test_absurd_numbers_stay_harmless():
    (report,) = ReportReader().feed(record(5, 99, 2**32 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1))
    assert describe_refusal(report) == "the init gave up: error 4294967295."


@pytest.mark.parametrize(("status", "how"), [(0x0300, "exited with code 3"), (0x008B, "signal 11 ended it")])
def test_interpreter_that_did_not_wait_is_said_to_have_ended_and_how(status: int, how: str):
    (report,) = ReportReader().feed(record(5, 9, status))
    assert describe_refusal(report).endswith(f"{how}.")


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\0b", "x" * 256, "a/" * 2100 + "b"]
)
def test_paths_that_could_lead_out_are_refused(path: str):
    with pytest.raises(ProgramRefusedError):
        check_path(path)


@pytest.mark.parametrize("path", ["a", "a/b/c", "..a", "a..", "...", " ", "ü" * 127, "-rf", "a\nb"])
def test_odd_but_harmless_paths_are_accepted(path: str):
    assert check_path(path) == path.encode()


@pytest.mark.parametrize(
    "program",
    [
        Program((), (), {}, b""),
        Program(("x\0y",), (), {}, b""),
        Program(("x",), (), {"A=B": "c"}, b""),
        Program(("x",), (), {"": "c"}, b""),
        Program(("x",), (), {"A": "b\0c"}, b""),
        Program(("x", "\ud800"), (), {}, b""),
        Program(("x",) * 5000, (), {}, b""),
        Program(("x" * (1 << 20),), (), {}, b""),
        Program(("x",), tuple(File(str(index), b"") for index in range(MAX_FILES + 1)), {}, b""),
        Program(("x",), (File("a", b"1"), File("a", b"2")), {}, b""),
        Program(("x",), (File("a/b", b"1"), File("a/b/c/d", b"2")), {}, b""),
        Program(("x",), (File("a/b", b"1"), File("a", b"2")), {}, b""),
        Program(("x" * (128 << 10),), (), {}, b""),
        Program(("x",), (), {"A": "x" * (128 << 10)}, b""),
    ],
)
def test_a_program_that_cannot_be_passed_on_is_refused_with_a_reason(program: Program):
    with pytest.raises(ProgramRefusedError, match=r"\w.*\.$"):
        encode(program, LIMITS)
