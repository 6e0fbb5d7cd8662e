"""Files that programs leave: stored under a lease, listed and read when the signed record lists them."""

import asyncio
import hashlib
import os
from datetime import timedelta

import pytest

from crucible.evaluation.v1.artifact_pb2 import Artifact, ArtifactSummary
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc.errors import (
    AbortedError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
)
from crucible_storage.artifacts.artifacts import READ_BYTES
from crucible_storage.artifacts.blob_store import PART, in_folder
from tests.storage import artifact_world as a
from tests.storage.world import POLICY, final_record, killed, report, signed, started, storage

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


async def test_what_a_program_left_is_listed_and_read_after_its_end(world):
    await world.create()
    await world.register()
    run = await world.lease_one()
    ticket = ex.Ticket.FromString(run.ticket.payload)
    assert ticket.max_artifact_bytes == POLICY.max_artifact_bytes
    big, odd = os.urandom(READ_BYTES + 2 * MIB + 77), "a\n\x1b[31m‮é"
    for path, data in (("z/big.bin", big), ("empty", b""), (odd, b"odd")):
        stored = await a.put(world, run, path, data)
        assert (stored.size, stored.sha256) == (len(data), hashlib.sha256(data).digest())
    assert await a.paths(world, run) == []
    with pytest.raises(NotFoundError, match="ARTIFACT_NOT_FOUND"):
        await a.read(world, run, "empty")

    files = [a.listing(odd, b"odd", total=9), a.listing("empty", b""), a.listing("z/big.bin", big)]
    assert await world.report(a.end(run, files, omitted=3)) == []
    shown = await world.service.artifacts.list("t", a.evaluation_id(run))
    assert shown.omitted == 3
    assert shown.artifacts[0] == Artifact(
        path=odd, bytes_total=9, bytes_kept=3, truncated=True, sha256=hashlib.sha256(b"odd").digest()
    )
    assert [one.path for one in shown.artifacts] == [odd, "empty", "z/big.bin"]
    assert (await world.get(run)).artifacts == ArtifactSummary(
        files=3, bytes_total=len(big) + 9, bytes_kept=len(big) + 3, truncated=True, omitted=3
    )
    assert await a.read(world, run, "z/big.bin") == big
    assert await a.read(world, run, "z/big.bin", MIB - 5, 10) == big[MIB - 5 : MIB + 5]
    assert await a.read(world, run, "z/big.bin", 2 * MIB) == big[2 * MIB :]
    assert await a.read(world, run, "z/big.bin", len(big)) == b""
    assert await a.read(world, run, "empty") == b""
    with pytest.raises(OutOfRangeError) as beyond:
        await a.read(world, run, "empty", 1)
    assert (beyond.value.reason, beyond.value.metadata) == ("ARTIFACT_RANGE", {"size": "0"})


async def test_a_list_says_why_there_may_have_been_more(world):
    await world.create("t")
    await world.register()
    run = await world.lease_one()
    lengthy = a.end(run, [], not_collected="x" * 1001)
    assert [one.reason for one in await world.report(lengthy)] == ["INVALID_RECORD"]
    assert await world.report(a.end(run, [], not_collected="the program was killed")) == []
    shown = await world.service.artifacts.list("t", a.evaluation_id(run))
    assert (shown.artifacts, shown.omitted, shown.not_collected) == ([], 0, "the program was killed")
    assert (await world.get(run)).artifacts == ArtifactSummary(not_collected="the program was killed")


async def test_another_tenant_finds_neither_list_nor_file(world):
    run = await a.ran(world, out=b"secret")
    with pytest.raises(NotFoundError, match="EVALUATION_NOT_FOUND"):
        await a.paths(world, run, tenant="other")
    with pytest.raises(NotFoundError, match="EVALUATION_NOT_FOUND"):
        await a.read(world, run, "out", tenant="other")


async def test_an_end_whose_artifacts_are_not_all_stored_is_refused_and_taken_later(world):
    run = await world.running()
    report_ = a.end(run, a.listed(x=b"one", y=b"two"))
    await a.put(world, run, "x", b"one")
    await a.put(world, run, "y", b"other bytes")
    for _ in range(2):
        [refused] = await world.report(report_)
        assert refused.reason == "ARTIFACTS_MISSING"
    assert (await world.get(run)).state == 3  # RUNNING
    await a.put(world, run, "y", b"two")
    assert await world.report(report_) == []
    assert await a.read(world, run, "y") == b"two"


@pytest.mark.parametrize(
    "listing",
    [
        [a.listing("../x", b"")],
        [a.listing("/x", b"")],
        [a.listing("a//b", b"")],
        [a.listing("", b"")],
        [a.listing("x" * 256, b"")],
        [a.listing("b", b""), a.listing("a", b"")],
        [a.listing("a", b""), a.listing("a", b"")],
        [a.listing("a", b"12", total=1)],
        [ex.RunArtifact(path="a", sha256=b"short")],
        [a.listing(f"{number:03}", b"") for number in range(257)],
        [a.listing(f"{number:03}" + "x" * 250, b"") for number in range(70)],
    ],
)
async def test_a_record_that_lists_what_cannot_be_is_refused(world, listing):
    run = await world.running()
    [refused] = await world.report(a.end(run, listing))
    assert refused.reason == "INVALID_RECORD"


async def test_storing_again_changes_nothing_and_needs_no_bytes(world, folder):
    run = await world.running()
    first = await a.put(world, run, "x", b"data")
    again = await world.service.uploads.store(a.wanted(run, "x", b"data"), a.unread())
    assert first == again
    same = await world.service.uploads.store(a.wanted(run, "copy", b"data"), a.unread())
    assert same == first
    assert len(a.objects(folder)) == 1


@pytest.mark.parametrize("size", [100, PART + 100])
async def test_bytes_that_are_not_those_announced_are_refused_and_nothing_is_kept(world, folder, size):
    run = await world.running()
    data = os.urandom(size)
    for changes in ({"size": size - 1}, {"size": size + 1}, {"sha256": bytes(32)}):
        with pytest.raises(InvalidArgumentError, match="ARTIFACT_MISMATCH"):
            await a.put(world, run, "x", data, **changes)
    with pytest.raises(ZeroDivisionError):
        await world.service.uploads.store(a.wanted(run, "x", data), a.parts_of(data, error=ZeroDivisionError()))
    assert a.objects(folder) == []


async def test_who_holds_no_lease_stores_nothing(world):
    run = await world.running()
    for changes in ({"executor": "ex-2"}, {"epoch": run.epoch + 1}, {"epoch": run.epoch - 1}):
        with pytest.raises(AbortedError, match="STALE_LEASE"):
            await a.put(world, run, "x", b"data", **changes)
    await a.put(world, run, "x", b"data")
    assert await world.report(a.end(run, a.listed(x=b"data"))) == []
    with pytest.raises(AbortedError, match="STALE_LEASE"):
        await a.put(world, run, "x", b"data")


async def test_an_upload_whose_lease_ends_meanwhile_is_refused_and_collected(world, folder, clock):
    run = await world.running()

    async def parts():
        yield b"da"
        clock.advance(POLICY.fence + timedelta(seconds=1))
        await world.sweep()
        yield b"ta"

    with pytest.raises(AbortedError, match="STALE_LEASE"):
        await world.service.uploads.store(a.wanted(run, "x", b"data"), parts())
    clock.advance(timedelta(hours=1))
    assert await world.service.collector.look() == 1
    assert a.objects(folder) == []


async def test_storage_cuts_at_its_own_bound_and_marks_it(tmp_path, databases):
    async with storage(tmp_path / "state", policy=POLICY.__class__(max_artifact_bytes=10)) as world:
        run = await world.running()
        await a.put(world, run, "a", b"123456")
        for _ in range(2):
            stored = await a.put(world, run, "b", b"abcdefgh")
            assert (stored.size, stored.sha256) == (4, hashlib.sha256(b"abcd").digest())
        assert (await a.put(world, run, "c", b"none of it")).size == 0
        with pytest.raises(InvalidArgumentError, match="ARTIFACT_MISMATCH"):
            await a.put(world, run, "d", b"xxxxx", sha256=bytes(32))
        assert await world.report(a.end(run, a.listed(a=b"123456", b=b"abcdefgh", c=b"none of it"))) == []
        [first, second, third] = (await world.service.artifacts.list("t", a.evaluation_id(run))).artifacts
        assert (first.truncated, second.truncated, third.truncated) == (False, True, True)
        assert (second.bytes_total, second.bytes_kept) == (8, 4)
        assert await a.read(world, run, "b") == b"abcd"
        assert await a.read(world, run, "c") == b""


async def test_the_bytes_count_for_the_tenant_until_they_are_deleted(world):
    async def stored():
        rows = await world.service.database.read(
            lambda connection: connection.exec_driver_sql(
                "SELECT stored_bytes FROM tenant_use WHERE tenant = 't' AND day = 0"
            ).fetchall()
        )
        return rows[0][0]

    await world.create()
    before = await stored()
    await world.register()
    run = await world.lease_one()
    await a.put(world, run, "x", bytes(1000))
    await a.put(world, run, "y", bytes(1000))
    assert await world.report(a.end(run, a.listed(x=bytes(1000), y=bytes(1000)))) == []
    assert await stored() == before + 2000
    await world.service.deletion.delete(a.evaluation_id(run), "key-1", "")
    assert await stored() == 0


async def test_a_killed_run_that_was_cancelled_keeps_what_its_record_lists(world):
    run = await world.running()
    await a.put(world, run, "x", b"data")
    await world.cancel(await world.get(run))
    final = final_record(run, killed())
    final.artifacts.extend(a.listed(x=b"data"))
    assert await world.report(report(run, started(), ex.RunEvent(finished=signed(final)))) == []
    assert await a.read(world, run, "x") == b"data"


async def test_a_damaged_object_is_told_before_its_last_bytes_and_mended_by_the_same_bytes(world, folder):
    data = os.urandom(READ_BYTES + MIB)
    run = await a.ran(world, x=data)
    [file] = a.objects(folder)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    parts = world.service.artifacts.read("t", a.evaluation_id(run), "x", 0, 0)
    got = [(await anext(parts))[2] for _ in range(READ_BYTES // MIB)]
    with pytest.raises(DataLossError, match="ARTIFACT_DAMAGED"):
        await anext(parts)
    assert b"".join(got) == data[:READ_BYTES]
    file.write_bytes(data[:100])
    with pytest.raises(DataLossError, match="ARTIFACT_DAMAGED"):
        await a.read(world, run, "x", 50, 60)
    file.unlink()
    with pytest.raises(DataLossError, match="ARTIFACT_DAMAGED"):
        await a.read(world, run, "x")
    other = await a.ran(world, y=data)
    assert await a.read(world, other, "y") == await a.read(world, run, "x") == data


async def test_a_store_that_is_away_delays_the_upload_and_the_end(tmp_path, databases):
    folder = tmp_path / "artifacts"
    async with storage(tmp_path / "state", blobs=in_folder(folder)) as world:
        run = await world.running()
        folder.rmdir()
        folder.write_text("in the way")
        with pytest.raises(UnavailableError, match="ARTIFACT_STORE_UNAVAILABLE"):
            await a.put(world, run, "x", b"data")
        [refused] = await world.report(a.end(run, a.listed(x=b"data")))
        assert refused.reason == "ARTIFACTS_MISSING"
        folder.unlink()
        await a.put(world, run, "x", b"data")
        assert await world.report(a.end(run, a.listed(x=b"data"))) == []
        assert await a.read(world, run, "x") == b"data"


async def test_no_more_uploads_than_are_bounded_are_in_memory_at_once(world):
    run = await world.running()
    go_on, four, begun, most = asyncio.Event(), asyncio.Event(), 0, 0

    async def parts(data):
        nonlocal begun, most
        begun += 1
        most = max(most, begun)
        if begun == 4:
            four.set()
        yield data[:1]
        await go_on.wait()
        yield data[1:]
        begun -= 1

    files = [os.urandom(10) for _ in range(9)]
    uploads = [
        asyncio.create_task(world.service.uploads.store(a.wanted(run, f"{n}", data), parts(data)))
        for n, data in enumerate(files)
    ]
    await asyncio.wait_for(four.wait(), 20)
    go_on.set()
    await asyncio.gather(*uploads)
    assert most == 4
