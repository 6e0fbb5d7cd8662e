"""The artifact store, in a folder and on a real server of the S3 protocol that also misbehaves."""

import asyncio
import errno
import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from crucible_rpc.errors import StartError, UnavailableError
from crucible_storage.artifacts import blob_store
from crucible_storage.artifacts.blob_store import PART, BlobMissingError, BlobStore, in_folder
from crucible_storage.artifacts.s3 import in_bucket
from tests.storage import s3_server
from tests.storage.s3_server import FaultyProxy

pytestmark = [pytest.mark.database("sqlite"), pytest.mark.slow]  # none is used: once is enough
QUICK, PATIENT = timedelta(seconds=1), timedelta(seconds=30)
NAME = "tenant/ab/object.1"


@pytest.fixture(scope="module")
def server():
    with s3_server.running() as started:
        yield started


class InFolder:
    def __init__(self, folder):
        self._folder = folder
        self.store = in_folder(folder)

    def names(self):
        return [str(path.relative_to(self._folder)) for path in self._folder.rglob("*") if path.is_file()]

    def unfinished(self):
        return []  # a file that is not whole has a name, so it is among those


class InBucket:
    def __init__(self, server):
        self._server, self._bucket = server, server.bucket(prefix="pre/fix", timeout=PATIENT)
        self.store = in_bucket(self._bucket)

    def names(self):
        return [name.removeprefix("pre/fix/") for name in self._server.names(self._bucket)]

    def unfinished(self):
        return self._server.unfinished(self._bucket)


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    if request.param == "folder":
        return InFolder(tmp_path / "artifacts")
    return InBucket(request.getfixturevalue("server"))


async def parts_of(data, size=1 << 20, error=None):
    for start in range(0, len(data), size):
        yield data[start : start + size]
    if error is not None:
        raise error


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART + 12345])
async def test_what_was_put_is_read_whole_and_by_range(place, size):
    data = os.urandom(size)
    await place.store.put(NAME, parts_of(data, 700_001))
    assert place.names() == [NAME]
    assert await place.store.size(NAME) == size
    assert await place.store.read(NAME, 0, size) == data
    middle, some = size // 2, min(1000, size - size // 2)
    assert await place.store.read(NAME, middle, some) == data[middle : middle + some]
    await place.store.delete(NAME)
    assert (await place.store.size(NAME), place.names()) == (None, [])
    await place.store.delete(NAME)


@pytest.mark.parametrize("size", [1000, 3 * PART])
async def test_an_upload_whose_source_fails_leaves_nothing(place, size):
    with pytest.raises(ZeroDivisionError):
        await place.store.put(NAME, parts_of(bytes(size), error=ZeroDivisionError()))
    assert (place.names(), place.unfinished()) == ([], [])


async def test_an_upload_whose_caller_leaves_leaves_nothing(place):
    stopped, go_on = asyncio.Event(), asyncio.Event()

    async def parts():
        for number in range(4):
            yield bytes(PART)
            if number == 2:
                stopped.set()
                await go_on.wait()

    putting = asyncio.create_task(place.store.put(NAME, parts()))
    await asyncio.wait_for(stopped.wait(), 20)
    putting.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert (place.names(), place.unfinished()) == ([], [])


async def test_what_is_not_there_or_too_short_is_told_apart_from_a_store_that_fails(place):
    with pytest.raises(BlobMissingError):
        await place.store.read(NAME, 0, 5)
    await place.store.put(NAME, parts_of(b"1234"))
    for start, length in ((0, 5), (4, 1), (9, 1)):
        with pytest.raises(BlobMissingError):
            await place.store.read(NAME, start, length)


async def test_what_a_killed_upload_left_in_a_folder_goes_with_its_name(tmp_path):
    place = InFolder(tmp_path / "artifacts")
    await place.store.put(NAME, parts_of(b"whole"))
    (tmp_path / "artifacts" / f"{NAME}#1").write_bytes(b"half")
    await place.store.delete(NAME)
    assert place.names() == []


@pytest.mark.parametrize("failure", [OSError(errno.EIO, os.strerror(errno.EIO)), FileNotFoundError("gone")], ids=repr)
async def test_a_disk_that_fails_at_the_end_of_an_upload_is_a_store_that_cannot_be_used_now(
    tmp_path, monkeypatch, failure
):
    def fails(_):
        raise failure

    monkeypatch.setattr(blob_store.os, "fsync", fails)
    with pytest.raises(UnavailableError) as caught:
        await InFolder(tmp_path / "artifacts").store.put(NAME, parts_of(b"whole"))
    assert caught.value.reason == "ARTIFACT_STORE_UNAVAILABLE"


async def test_a_full_disk_is_told_as_such_also_at_the_end_of_an_upload(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blob_store.os, "fsync", full)
    with pytest.raises(UnavailableError, match="its disk is full"):
        await InFolder(tmp_path / "artifacts").store.put(NAME, parts_of(b"whole"))


async def test_a_disk_that_fails_while_what_was_left_is_removed_is_a_store_that_cannot_be_used_now(tmp_path):
    place = InFolder(tmp_path / "artifacts")
    await place.store.put(NAME, parts_of(b"whole"))
    (tmp_path / "artifacts" / f"{NAME}#1").mkdir()  # cannot be unlinked, whoever asks
    with pytest.raises(UnavailableError) as caught:
        await place.store.delete(NAME)
    assert caught.value.reason == "ARTIFACT_STORE_UNAVAILABLE"


async def test_an_upload_whose_place_goes_away_can_be_tried_again(tmp_path, monkeypatch):
    async def gone(*_, **__):
        raise FileNotFoundError("Object at location tenant/ab/object.1 not found")

    monkeypatch.setattr("obstore.put_async", gone)
    with pytest.raises(UnavailableError) as caught:
        await InFolder(tmp_path / "artifacts").store.put(NAME, parts_of(b"whole"))
    assert caught.value.reason == "ARTIFACT_STORE_UNAVAILABLE"


async def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"the folder of artifacts .*/file/artifacts cannot be made: Not a directory"):
        await in_folder(tmp_path / "file" / "artifacts").prepare()


@pytest.mark.parametrize("fault", ["busy", "hang", "cut"])
@pytest.mark.parametrize("size", [1000, 2 * PART])
async def test_a_store_that_fails_delays_and_never_half_writes(server, fault, size):
    async with FaultyProxy(server.port) as proxy:
        bucket = replace(server.bucket(), endpoint=proxy.endpoint)
        store, patient = in_bucket(replace(bucket, timeout=QUICK)), in_bucket(replace(bucket, timeout=PATIENT))
        data = os.urandom(size)
        proxy.fault, proxy.cut_after = fault, size // 3
        begun = time.monotonic()
        with pytest.raises(UnavailableError) as refused:
            await store.put(NAME, parts_of(data))
        assert (refused.value.reason, refused.value.retry_after is not None) == ("ARTIFACT_STORE_UNAVAILABLE", True)
        assert time.monotonic() - begun < 20
        assert server.names(bucket) == []
        proxy.fault = "pass"
        await patient.put(NAME, parts_of(data))
        proxy.fault, proxy.cut_after = fault, 10
        with pytest.raises(UnavailableError):
            await store.size(NAME)
        proxy.fault = "pass"
        assert await patient.read(NAME, 0, size) == data


async def test_a_store_that_fails_for_a_moment_is_not_noticed(server):
    async with FaultyProxy(server.port) as proxy:
        store = in_bucket(replace(server.bucket(timeout=PATIENT), endpoint=proxy.endpoint))
        proxy.fault = "busy"
        putting = asyncio.create_task(store.put(NAME, parts_of(b"data")))
        for _ in range(2):
            await asyncio.wait_for(proxy.seen.acquire(), 20)
        proxy.fault = "pass"
        await putting
        assert await store.read(NAME, 0, 4) == b"data"


async def test_a_wrong_bucket_or_wrong_credentials_are_one_clear_line(server, tmp_path, caplog):
    bucket = server.bucket(timeout=PATIENT)
    wrong = replace(bucket, name="nobody-made-this")
    with pytest.raises(StartError, match=r"the artifact store s3://nobody-made-this cannot be used: there is no such"):
        await in_bucket(wrong).prepare()
    server.check_credentials(True)
    try:
        with pytest.raises(StartError) as refused:
            await in_bucket(bucket).prepare()
    finally:
        server.check_credentials(False)
    assert "it refuses these credentials or this request (403, InvalidAccessKeyId)" in str(refused.value)
    assert "the-secret" not in str(refused.value) + caplog.text
    await in_bucket(bucket).prepare()
    assert server.names(bucket) == []


async def test_a_store_that_is_away_at_the_start_is_warned_of(server, caplog):
    async with FaultyProxy(server.port) as proxy:
        proxy.fault = "busy"
        await in_bucket(server.bucket(timeout=QUICK, endpoint=proxy.endpoint)).prepare()
    assert "cannot be reached; artifacts wait until it can" in caplog.text


def test_credentials_come_from_a_file_and_a_bad_one_is_one_line_without_its_text(tmp_path):
    file = tmp_path / "credentials"
    for text in (None, "no section: the-secret", "[default]\naws_access_key_id = the-secret\n", "\xff"):
        if text is not None:
            file.write_text(text)
        with pytest.raises(StartError, match=rf"the credentials file {file} (cannot be read|needs a section)") as error:
            in_bucket(s3_server.Bucket("bucket", credentials_file=file))
        assert "the-secret" not in str(error.value)
    file.write_text("[default]\naws_access_key_id = id\naws_secret_access_key = s%ecret\n")
    assert isinstance(in_bucket(s3_server.Bucket("bucket", credentials_file=file)), BlobStore)


def test_obstore_is_known_to_one_module_and_the_maker_of_buckets():
    sources = Path(blob_store.__file__).parents[1].rglob("*.py")
    assert sorted(one.name for one in sources if "obstore" in one.read_text()) == ["blob_store.py", "s3.py"]
