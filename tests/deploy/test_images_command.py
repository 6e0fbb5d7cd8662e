"""`crucible images`, over a store of the test's own."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from crucible_deploy import images_command, mounts, rootfs
from crucible_deploy.failures import BuildError
from crucible_deploy.images import ImageStore
from tests.deploy import archives as a

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def cache(home, monkeypatch):
    """For every test here: none may come near the machine's own store."""
    monkeypatch.setenv("CRUCIBLE_HOME", str(home))
    monkeypatch.setenv("CRUCIBLE_CACHE", str(home.parent / "cache"))
    return home.parent / "cache"


@pytest.fixture
def store(cache):
    return ImageStore(cache / "images")


@pytest.fixture
def archive(tmp_path):
    def write(content=None, name="archive"):
        (tmp_path / name).write_bytes(content or a.tar(a.file("etc/one", b"one")))
        return str(tmp_path / name)

    return write


def images(*arguments, fails=None):
    done = CliRunner().invoke(images_command.images, list(arguments))
    if fails is None:
        assert done.exit_code == 0, done.output
        return done.stdout
    assert done.exit_code == 1, done.output
    assert fails in done.output
    assert "Traceback" not in done.output
    return done.output


def trees(cache):
    return sorted(path.name for path in (cache / "images").iterdir())


@contextmanager
def used(store, name):
    """What a running executor does with an image."""
    folder = os.open(store.rootfs(store.manifest(name)).parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(folder)


def test_an_image_is_imported_listed_checked_and_removed(cache, store, archive):
    said = json.loads(images("import", "tiny", archive(), "--json"))["images"][0]
    listed = {one["name"]: one for one in json.loads(images("list", "--json"))["images"]}
    assert {**said, "runtimes": [], "fault": ""} == listed["tiny"]
    assert (said["source"], said["bytes"]) == ("rootfs", 3)
    assert {name: bool(one["fault"]) for name, one in listed.items()} == {
        "tiny": False, "python": True, "python-science": True, "node": True,
    }  # fmt: skip
    assert listed["python"]["runtimes"] == ["python", "bash"]
    assert f"tiny\t{said['digest'][:19]}" in images("list")
    assert images("check") == "tiny\tverified\n"
    assert trees(cache) == [said["digest"].replace(":", "-"), "tiny.json"]
    assert "removed image tiny" in images("rm", "tiny")
    assert trees(cache) == []
    assert [path.name for path in cache.iterdir() if path.name != "images"] == [".crucible", ".lock"]


def test_a_docker_image_keeps_the_digest_of_its_configuration(archive):
    layer = a.tar(a.file("etc/one"))
    said = json.loads(images("import", "tiny", archive(a.docker_save(layer)), "--json"))["images"][0]
    assert said["source"] == f"docker {a.digest(a.config([layer]))}"
    again = json.loads(images("import", "other", archive(a.oci_tar(a.oci_files(layer))), "--json"))["images"][0]
    assert (again["digest"], again["rootfs"]) == (said["digest"], said["rootfs"])


def test_the_same_content_is_one_tree_which_goes_with_its_last_name(cache, archive):
    for name in ("one", "two", "two"):
        images("import", name, archive(), "--replace")
    assert len(trees(cache)) == 3
    assert "tree" not in images("rm", "one")
    assert len(trees(cache)) == 2
    assert "removed tree sha256-" in images("rm", "two")
    assert trees(cache) == []


def test_a_name_is_taken_from_another_image_only_when_asked(cache, store, archive):
    images("import", "tiny", archive())
    first = store.manifest("tiny")
    other = archive(a.tar(a.file("etc/two")))
    images("import", "tiny", other, fails="--replace")
    assert store.manifest("tiny") == first
    images("import", "tiny", other, "--replace")
    assert store.manifest("tiny") != first
    assert json.loads(images("list", "--json"))["unused"] == [str(store.rootfs(first).parent)]
    assert "removed tree" in images("rm", "--unused")
    assert not store.rootfs(first).exists()
    assert images("check") == "tiny\tverified\n"


@pytest.mark.parametrize("name", ["", "..", "../x", "A", "sha256-" + "a" * 64, "x" * 64, ".building-x", "a/b"])
def test_names_that_could_be_something_else_are_refused(cache, archive, name):
    done = CliRunner().invoke(images_command.images, ["import", "--", name, archive()])
    assert done.exit_code == 2
    assert not cache.exists()


def test_a_hostile_or_large_archive_is_one_line_and_leaves_nothing(cache, archive):
    images("import", "tiny", archive(a.tar(a.file("../out"))), fails="leads out")
    images("import", "tiny", archive(a.tar(a.file("f", b"\0" * 5000))), "--max-size", "4KiB", fails="4096 bytes")
    images("import", "tiny", archive(a.tar(a.file("f"), a.file("g"))), "--max-entries", "1", fails="1 entries")
    assert trees(cache) == []


def test_an_image_that_a_runtime_needs_is_kept_unless_forced(cache, archive):
    images("import", "node", archive())
    images("rm", "node", fails="needed by the runtime node")
    assert "node.json" in trees(cache)
    images("rm", "--force", "node")
    assert trees(cache) == []


def test_an_image_that_a_running_executor_uses_is_kept_whatever_is_asked(cache, store, archive):
    images("import", "tiny", archive())
    tree = store.rootfs(store.manifest("tiny"))
    with used(store, "tiny"):
        images("rm", "--force", "tiny", fails="a running executor uses")
        assert tree.is_dir()
        images("import", "tiny", archive(a.tar(a.file("etc/two"))), "--replace")
        assert images("rm", "--unused") == ""
        assert tree.is_dir()
    assert "removed tree" in images("rm", "--unused")
    assert not tree.exists()


def test_a_tree_is_kept_while_a_manifest_that_cannot_be_read_may_name_it(cache, store, archive):
    images("import", "tiny", archive())
    (cache / "images" / "broken.json").write_text("{")
    images("rm", "tiny")
    assert len(trees(cache)) == 2
    images("check", fails="its manifest or tree cannot be used")
    images("rm", "broken")
    assert trees(cache) == []


def test_a_changed_byte_is_one_clear_error(store, archive):
    images("import", "tiny", archive())
    images("import", "other", archive(a.tar(a.file("etc/two"))))
    (store.rootfs(store.manifest("tiny")) / "etc/one").write_bytes(b"onf")
    said = images("check", fails="its manifest says")
    assert said.count("\n") == 2
    assert "other\tverified" in said
    told = {one["name"]: one["ok"] for one in json.loads(images("check", "--json", fails="{"))["images"]}
    assert told == {"other": True, "tiny": False}
    images("check", "missing", fails="there is no such image")


def test_a_packed_file_that_is_not_the_tree_is_found(store, archive, tmp_path):
    images("import", "tiny", archive())
    rootfs = store.rootfs(store.manifest("tiny"))
    packed = rootfs.with_name("rootfs.erofs")
    pack = ["mkfs.erofs", "--quiet", "--all-root", "-x-1", "-Enoinline_data", "-T0"]
    subprocess.run([*pack, str(packed), str(rootfs)], check=True, capture_output=True)
    assert images("check") == "tiny\tverified\n"
    other = tmp_path / "other"
    other.mkdir()
    (other / "added").touch()
    packed.unlink()
    subprocess.run([*pack, str(packed), str(other)], check=True, capture_output=True)
    images("check", fails="holds a tree with the digest")
    packed.write_bytes(b"rubbish")
    images("check", fails="is damaged")


def test_an_image_is_built_once_and_a_failed_build_is_one_line(cache, store, monkeypatch):
    calls = []

    def build(recipe, root, log):
        calls.append(recipe.name)
        root.mkdir()
        (root / "file").write_text(recipe.name)
        if recipe.name == "node":
            raise BuildError("no network")
        return {"python": "3.11.2"}

    monkeypatch.setattr(images_command, "build_with_debootstrap", build)
    images("build", "python-science")
    images("build", "python-science", "python")
    assert calls == ["python-science", "python"]
    images("build", "--all", fails="no network")
    assert sorted(store.names()) == ["python", "python-science"]
    assert not [name for name in trees(cache) if name.startswith(".")]
    assert CliRunner().invoke(images_command.images, ["build", "cobol"]).exit_code == 2
    assert CliRunner().invoke(images_command.images, ["build"]).exit_code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_import_that_is_interrupted_leaves_nothing(cache, number):
    """It reads from a pipe that says nothing, so that it is in the midst of its work when the signal comes."""
    command = [sys.executable, "-m", "crucible_client", "images", "import", "tiny", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 60
        while not list((cache / "images").glob(".building-*/rootfs")) or not unpacker_of(process.pid):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == 130
    assert trees(cache) == []
    assert mounts.below(cache) == []


def unpacker_of(pid):
    """Whether that process has a child, of which it has one at a time."""
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_what_a_killed_command_left_is_gone_after_the_next(cache, store, archive):
    left = cache / "images" / ".building-killed" / "rootfs"
    left.mkdir(parents=True)
    images("import", "tiny", archive())
    assert not left.parent.exists()


def test_commands_that_change_the_store_wait_for_one_another(cache, archive):
    cache.mkdir()
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "crucible_client", "images", "import", "tiny", archive()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline().startswith("waiting for set-up")
            assert not (cache / "images").exists()
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert process.wait(60) == 0


def test_recipes_are_named_by_all_that_they_say_and_by_the_content_of_their_lock(monkeypatch, tmp_path):
    science = rootfs.RECIPES["python-science"]
    lock = science.lock_file.read_text()
    assert lock.count("--hash=sha256:") > lock.count("==") > 3
    before = science.digest
    monkeypatch.setattr(rootfs, "_LOCKS", tmp_path)
    (tmp_path / "python-science.txt").write_text(lock + "\n")
    assert science.digest != before
    assert len({recipe.digest for recipe in rootfs.RECIPES.values()}) == len(rootfs.RECIPES)


def test_who_is_not_root_is_told_to_be(cache):
    command = [sys.executable, "-m", "crucible_client", "images", "rm", "--unused"]
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "as root" in done.stderr or "Permission denied" in done.stderr
