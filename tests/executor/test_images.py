"""The image store: what is there, what is refused, and the packed form."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible_executor.images import ImageNotFoundError, ImageStore

DIGEST = "sha256:" + "a" * 64


def put(
    store: Path,
    name: str = "python",
    digest: object = DIGEST,
    folders: tuple[str, ...] = ("workspace", "tmp", "proc", "dev"),
) -> Path:
    rootfs = store / "tree" / "rootfs"
    for folder in folders:
        (rootfs / folder).mkdir(parents=True, exist_ok=True)
    rootfs.mkdir(parents=True, exist_ok=True)
    (store / f"{name}.json").write_text(
        json.dumps({"name": name, "digest": digest, "rootfs": "tree/rootfs", "more": {}})
    )
    return rootfs


def test_image_is_found_by_name_and_by_digest(tmp_path: Path):
    rootfs = put(tmp_path)
    store = ImageStore(tmp_path)
    assert store.names() == ["python"]
    assert store.resolve("python") == store.resolve(DIGEST)
    assert (store.resolve("python").rootfs, store.resolve("python").erofs) == (rootfs, None)


@pytest.mark.parametrize("name", ["missing", "../python", "/etc/passwd", "", "A", "sha256:" + "b" * 64])
def test_unknown_and_impossible_names_are_refused(tmp_path: Path, name: str):
    put(tmp_path)
    with pytest.raises(ImageNotFoundError):
        ImageStore(tmp_path).resolve(name)


def test_only_images_of_runtimes_exist_whatever_else_is_in_the_store(tmp_path: Path):
    put(tmp_path, name="other")
    store = ImageStore(tmp_path)
    assert store.names() == []
    for name in ("other", DIGEST):
        with pytest.raises(ImageNotFoundError):
            store.resolve(name)
    assert ImageStore(tmp_path, ["other"]).resolve("other").digest == DIGEST


def test_the_image_that_every_machine_has_comes_first_and_a_broken_one_does_no_harm(tmp_path: Path):
    for name in ("python", "node", "broken"):
        put(tmp_path, name=name)
    (tmp_path / "broken.json").write_text("{")
    store = ImageStore(tmp_path, ["python", "broken", "missing", "node"])
    assert store.names() == ["python", "node"]
    assert store.resolve(DIGEST).rootfs.is_dir()


def test_an_image_in_use_is_locked_until_its_user_is_gone(tmp_path: Path):
    """`crucible images rm` asks for the same lock alone."""
    tree = put(tmp_path).parent
    store = ImageStore(tmp_path)
    with folder_of(tree) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ImageNotFoundError, match="being removed"):
            store.resolve("python")
    store.resolve("python")
    with folder_of(tree) as folder:
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ImageStore(tmp_path).resolve("python")  # by several at once
        del store
        gc.collect()
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def folder_of(tree: Path) -> Iterator[int]:
    folder = os.open(tree, os.O_RDONLY)
    try:
        yield folder
    finally:
        os.close(folder)


@pytest.mark.parametrize("digest", ["sha256:short", None, 7])
def test_manifest_without_a_digest_is_refused(tmp_path: Path, digest: object):
    put(tmp_path, digest=digest)
    with pytest.raises(ImageNotFoundError, match="digest"):
        ImageStore(tmp_path).resolve("python")


def test_tree_without_its_mount_points_is_refused(tmp_path: Path):
    put(tmp_path, folders=("tmp", "proc", "dev"))
    with pytest.raises(ImageNotFoundError, match="workspace"):
        ImageStore(tmp_path).resolve("python")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": 1}', '"x"'])
def test_broken_manifest_is_refused_with_its_name(tmp_path: Path, text: str):
    put(tmp_path)
    (tmp_path / "python.json").write_text(text)
    with pytest.raises(ImageNotFoundError, match=r"python\.json"):
        ImageStore(tmp_path).resolve("python")


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs (package erofs-utils) is not installed")
async def test_packing_is_done_once_gives_equal_bytes_and_leaves_nothing_else(tmp_path: Path):
    rootfs = put(tmp_path)
    (rootfs / "file").write_bytes(b"x" * 10_000)
    first = await ImageStore(tmp_path).pack("python")
    assert first.erofs is not None
    content = first.erofs.read_bytes()
    assert (await ImageStore(tmp_path).pack("python")).erofs == first.erofs
    assert sorted(path.name for path in first.erofs.parent.iterdir()) == ["rootfs", "rootfs.erofs"]
    first.erofs.unlink()
    assert (await ImageStore(tmp_path).pack(DIGEST)).erofs == first.erofs
    assert first.erofs.read_bytes() == content


async def test_without_the_tool_the_tree_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert (await ImageStore(tmp_path).pack("python")).erofs is None


async def test_failed_packing_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rootfs = put(tmp_path)
    tool = tmp_path / "bin" / "mkfs.erofs"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho no space >&2\nexit 3\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    with pytest.raises(OSError, match="no space"):
        await ImageStore(tmp_path).pack("python")
    assert [path.name for path in rootfs.parent.iterdir()] == ["rootfs"]
