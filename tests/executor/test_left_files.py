"""What a sandbox sends of the files that its program left is hostile: it is bounded, or it is an error."""

import asyncio
import hashlib
import os
import random
import resource
import struct

import pytest

from crucible_executor.collecting import MAX_PATHS_BYTES, Collector
from crucible_executor.host_pipes import PipeReader
from crucible_executor.init_protocol import MAX_LEFT_FILES, ProtocolError, ReportKind, ReportReader
from crucible_executor.model import Artifacts
from crucible_executor.spool import Spool
from tests.executor.left_messages import ABANDONED, CHUNK_BYTES, DATA, DONE, END, NAME, end, feed, file, message, name
from tests.executor.test_init_protocol import record as report

pytestmark = pytest.mark.slow

LIMIT = 1 << 20
FILES = {b"a/b": b"x" * 200_000, b"empty": b"", "ü\n\x1b[31m".encode(): b"odd", b"z": b"last"}
STREAM = b"".join(file(path, content) for path, content in FILES.items()) + end(omitted=3)


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path / "files", LIMIT)
    yield made
    made.drop()


async def collected(data: bytes, spool: Spool, limit: int = LIMIT, piece: int = 65536) -> Artifacts:
    collector = Collector(limit, spool)
    for at in range(0, len(data), piece):
        collector.feed(data[at : at + piece])
    return await collector.artifacts()


def contents(artifacts: Artifacts, spool: Spool) -> dict[bytes, bytes]:
    return {file.path.encode(): spool.read(file.offset, file.bytes_kept) for file in artifacts.files}


@pytest.mark.parametrize("piece", [1, 7, 8, 4096, 65536, 1 << 20])
async def test_files_come_out_whole_however_their_bytes_arrive(spool, piece):
    artifacts = await collected(STREAM, spool, piece=piece)
    assert contents(artifacts, spool) == FILES
    assert [one.path.encode() for one in artifacts.files] == sorted(FILES)
    for one in artifacts.files:
        assert one.sha256 == hashlib.sha256(FILES[one.path.encode()]).digest()
        assert one.bytes_total == one.bytes_kept == len(FILES[one.path.encode()])
    assert (artifacts.omitted, artifacts.not_collected) == (3, "")


async def test_what_follows_the_files_is_given_back(spool):
    collector = Collector(LIMIT, spool)
    assert await feed(collector, [STREAM[:-3], STREAM[-3:] + b"the rest"]) == b"the rest"
    assert collector.finished


async def test_a_cut_file_says_so_and_an_abandoned_one_leaves_nothing(spool):
    data = file(b"cut", b"12345", size=9) + name(b"gone", 5) + message(DATA, b"gone!") + message(ABANDONED)
    artifacts = await collected(data + file(b"after", b"678", size=7) + end(), spool)
    assert contents(artifacts, spool) == {b"cut": b"12345", b"after": b"678"}
    assert [(one.bytes_kept, one.bytes_total) for one in artifacts.files] == [(3, 7), (5, 9)]
    assert spool.size == 8


async def test_names_that_are_no_text_or_too_long_together_are_omitted(spool):
    long = [b"%03d" % count + b"x" * 250 for count in range(70)]
    data = b"".join(file(path, b"1") for path in (b"\xff\xfe", b"ok\xc3", b"ok", *long)) + end()
    artifacts = await collected(data, spool)
    assert sum(len(one.path.encode()) for one in artifacts.files) <= MAX_PATHS_BYTES
    assert len(artifacts.files) == 1 + (MAX_PATHS_BYTES - 2) // 253
    assert artifacts.omitted == 73 - len(artifacts.files)
    assert spool.size == len(artifacts.files)


async def test_sizes_that_no_sum_could_hold_are_told_as_less(spool):
    artifacts = await collected(file(b"sparse", b"", size=2**64 - 1) + end(omitted=2**64 - 1), spool)
    assert artifacts.files[0].bytes_total == artifacts.omitted == 1 << 53


async def test_files_of_a_sandbox_that_was_ended_meanwhile_are_those_that_came_whole(spool):
    artifacts = await collected(file(b"whole", b"1") + name(b"half", 2) + message(DATA, b"1"), spool)
    assert [one.path for one in artifacts.files] == ["whole"]
    assert "did not hand over all" in artifacts.not_collected


async def test_a_spool_without_room_is_a_fault_and_not_a_loss(tmp_path):
    small = Spool(tmp_path / "files", 10)
    await collected(file(b"fits", b"123") + file(b"does not", b"x" * 8) + end(), small)
    assert "there was room for 10 bytes" in small.fault
    small.drop()


HOSTILE = {
    "unknown kind": message(9),
    "endless name": struct.pack("<II", NAME, 2**32 - 1),
    "no name": name(b"", 1),
    "long name": name(b"x" * 256, 1),
    "absolute": name(b"/etc/passwd", 1),
    "way out": name(b"a/../../b", 1),
    "here": name(b"./a", 1),
    "empty part": name(b"a//b", 1),
    "NUL": name(b"a\0b", 1),
    "data without a name": message(DATA, b"x"),
    "end without a name": message(DONE),
    "name within a file": name(b"a", 1) + name(b"b", 1),
    "end within a file": name(b"a", 1) + end(),
    "twice": file(b"a", b"1") + file(b"a", b"1"),
    "empty data": name(b"a", 1) + message(DATA),
    "too much data at once": name(b"a", 1) + struct.pack("<II", DATA, CHUNK_BYTES + 1),
    "done with bytes": name(b"a", 1) + message(DONE, b"x"),
    "short end": message(END, b"x" * 15),
    "more bytes than asked for": file(b"a", b"x" * (LIMIT + 1)),
    "more files than asked for": b"".join(file(b"%d" % count, b"") for count in range(MAX_LEFT_FILES + 1)),
    "a report": report(ReportKind.GONE),
}


@pytest.mark.parametrize("why", HOSTILE)
async def test_what_no_init_sends_is_refused(spool, why):
    with pytest.raises(ProtocolError):
        await collected(HOSTILE[why], spool)


async def test_damaged_streams_are_refused_or_stay_within_their_bounds(tmp_path):
    """Each of 2000 streams with some bytes changed, removed or added."""
    rng = random.Random(20260527)
    small = b"".join(file(path, content[:50]) for path, content in FILES.items()) + end(omitted=3)
    refused = 0
    for count in range(2000):
        data = bytearray(small)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    del data[at : at + rng.randint(1, 9)]
                case _:
                    data[at:at] = rng.randbytes(rng.randint(1, 9))
        spool = Spool(tmp_path / f"{count}", LIMIT)
        try:
            artifacts = await collected(bytes(data), spool, limit=200, piece=rng.choice((1, 13, 4096)))
        except ProtocolError:
            refused += 1
        else:
            assert sum(one.bytes_kept for one in artifacts.files) <= spool.size <= 200
            paths = [one.path for one in artifacts.files]
            assert len(set(paths)) == len(paths) <= MAX_LEFT_FILES
            for path in paths:
                assert 1 <= len(path.encode()) <= 255
                assert not {"", ".", ".."} & set(path.split("/"))
        spool.drop()
    assert 500 < refused < 2000


async def test_reports_go_on_behind_the_files(spool):
    collector = Collector(LIMIT, spool)
    data = report(ReportKind.STARTED) + report(ReportKind.ENDED) + report(ReportKind.LEFT) + STREAM
    kinds = []
    reader = ReportReader()
    for at in range(0, len(data), 1000):
        for one in reader.feed(data[at : at + 1000]):
            kinds.append(one.kind)
            if one.kind is ReportKind.LEFT:
                reader.files = collector
        if (written := collector.flush()) is not None:
            await written
    assert [one.kind for one in reader.feed(report(ReportKind.GONE))] == [ReportKind.GONE]
    assert kinds == [ReportKind.STARTED, ReportKind.ENDED, ReportKind.LEFT]
    assert contents(await collector.artifacts(), spool) == FILES


@pytest.mark.parametrize(
    "kinds",
    [
        (ReportKind.LEFT,),
        (ReportKind.STARTED, ReportKind.LEFT),
        (ReportKind.ENDED, ReportKind.GONE, ReportKind.LEFT),
    ],
)
def test_files_come_after_the_programs_end_alone(kinds):
    with pytest.raises(ProtocolError):
        list(ReportReader().feed(b"".join(map(report, kinds))))


def test_files_that_nobody_asked_for_are_refused():
    with pytest.raises(ProtocolError, match="nobody asked for"):
        list(ReportReader().feed(report(ReportKind.ENDED) + report(ReportKind.LEFT) + STREAM))


async def test_files_much_larger_than_memory_should_hold_pass_through_it(tmp_path):
    """128 MiB through a pipe, as an engine reads it: what is not written yet waits in the pipe."""
    spool = Spool(tmp_path / "files", 1 << 30)
    collector = Collector(1 << 30, spool)
    count = 2048
    read_end, write_end = os.pipe()
    chunk = message(DATA, b"x" * CHUNK_BYTES)

    def send() -> None:
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            for data in (name(b"big", count * CHUNK_BYTES), *(chunk for _ in range(count)), message(DONE), end()):
                pipe.write(data)

    def take(data: bytes) -> asyncio.Future[None] | None:
        assert collector.feed(data) == b""
        return collector.flush()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = PipeReader(read_end, take)
    await asyncio.gather(asyncio.to_thread(send), reader.finished)
    artifacts = await collector.artifacts()
    assert artifacts.files[0].bytes_kept == spool.size == count * CHUNK_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB
    spool.drop()
