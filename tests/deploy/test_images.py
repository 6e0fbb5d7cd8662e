import json
import os
import subprocess

import pytest

from crucible_deploy import mounts
from crucible_deploy.images import ImageStore
from crucible_deploy.layout import Layout
from crucible_deploy.rootfs import PYTHON, BuildError, Recipe, normalise, trim
from crucible_deploy.tree_digest import UnfitTreeError, tree_digest

FACTS = {"python": "3.11.2", "packages": {"python3": "3.11.2-1"}}
RECIPE = Recipe(name="tiny")


class Builder:
    """Makes a tree of one file, and counts how often it was asked to."""

    def __init__(self, content=b"one", fault=None):
        self.content, self.fault, self.calls = content, fault, 0

    def __call__(self, recipe, root, log):
        self.calls += 1
        root.mkdir()
        (root / "file").write_bytes(self.content)
        if self.fault is not None:
            raise self.fault
        return FACTS


@pytest.fixture
def store(tmp_path):
    return ImageStore(tmp_path / "images")


def entries(tmp_path):
    return sorted(path.name for path in (tmp_path / "images").iterdir())


@pytest.mark.root
def test_an_image_is_built_once_and_its_manifest_names_it(store, tmp_path):
    builder = Builder()
    manifest = store.ensure(RECIPE, builder)
    assert store.ensure(RECIPE, builder) == manifest == store.manifest("tiny")
    assert builder.calls == 1
    assert manifest.digest == tree_digest(store.rootfs(manifest))
    assert entries(tmp_path) == [manifest.digest.replace(":", "-"), "tiny.json"]
    read = json.loads((tmp_path / "images" / "tiny.json").read_text())
    assert read["rootfs"] == f"{manifest.digest.replace(':', '-')}/rootfs"
    assert (tmp_path / "images" / "tiny.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.root
def test_another_recipe_makes_another_image_and_keeps_the_one_in_use(store, tmp_path):
    first = store.ensure(RECIPE, Builder())
    second = store.ensure(Recipe(name="tiny", revision=RECIPE.revision + 1), Builder(b"two"))
    assert store.manifest("tiny") == second
    assert store.rootfs(first).is_dir()


@pytest.mark.root
@pytest.mark.parametrize("fault", [BuildError("no network"), KeyboardInterrupt()])
def test_a_build_that_fails_or_is_interrupted_changes_nothing(store, tmp_path, fault):
    first = store.ensure(RECIPE, Builder())
    with pytest.raises(type(fault)):
        store.ensure(Recipe(name="tiny", revision=RECIPE.revision + 1), Builder(b"two", fault))
    assert store.manifest("tiny") == first
    assert [name for name in entries(tmp_path) if name != "tiny.log"] == [
        first.digest.replace(":", "-"),
        "tiny.json",
    ]


@pytest.mark.root
def test_what_a_killed_build_left_is_removed_with_its_mounts_first(store, tmp_path):
    left = tmp_path / "images" / ".building-killed" / "rootfs"
    (left / "proc").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    subprocess.run(["mount", "--bind", str(outside), str(left / "proc")], check=True)
    try:
        assert mounts.below(left) == [left / "proc"]
        store.ensure(RECIPE, Builder())
    finally:
        for point in mounts.below(left):
            subprocess.run(["umount", str(point)], check=True)
    assert not left.exists()
    assert (outside / "precious").exists()


@pytest.mark.root
def test_a_changed_byte_fails_verification(store):
    manifest = store.ensure(RECIPE, Builder())
    store.verify(manifest)
    (store.rootfs(manifest) / "file").write_bytes(b"onf")
    with pytest.raises(UnfitTreeError, match="its manifest says"):
        store.verify(manifest)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "tiny"}', json.dumps({"unknown": 1})])
def test_a_damaged_manifest_is_no_manifest(store, tmp_path, content):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "tiny.json").write_text(content)
    assert store.manifest("tiny") is None


def test_a_manifest_without_its_tree_is_no_manifest(store, tmp_path):
    (tmp_path / "images").mkdir()
    fields = {"name": "tiny", "digest": "sha256:0", "rootfs": "sha256-0/rootfs", "recipe": "r", "python": "3.11.2"}
    (tmp_path / "images" / "tiny.json").write_text(json.dumps(fields))
    assert store.manifest("tiny") is None


def test_the_recipe_is_named_by_all_that_it_says():
    assert Recipe().digest == PYTHON.digest
    others = (Recipe(revision=RECIPE.revision + 1), Recipe(packages=("python3", "less")))
    assert len({one.digest for one in (Recipe(), *others)}) == 3


@pytest.mark.root
def test_a_trimmed_tree_has_no_device_no_set_id_file_and_no_host_name(tmp_path):
    root = tmp_path / "rootfs"
    for folder in ("etc", "dev", "usr/bin", "usr/share/doc/x", "usr/lib/python3/__pycache__", "tmp/left", "var/log"):
        (root / folder).mkdir(parents=True)
    os.mknod(root / "dev" / "null", 0o20666, os.makedev(1, 3))
    (root / "etc" / "hostname").write_text("host")
    (root / "etc" / "resolv.conf").symlink_to("/nowhere")
    (root / "etc" / "shadow").write_text("root:*")
    for name in ("su", "wall"):
        (root / "usr" / "bin" / name).touch()
        (root / "usr" / "bin" / name).chmod(0o6755)
        os.chown(root / "usr" / "bin" / name, 0, 42)
        (root / "usr" / "bin" / name).chmod(0o6755)
    trim(PYTHON, root)
    normalise(root)
    tree_digest(root)  # refuses devices and foreign owners
    found = subprocess.run(["find", str(root), "-perm", "/6000"], capture_output=True, text=True, check=True)
    assert found.stdout == ""
    left = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert {"workspace", "tmp", "proc", "dev", "sys", "etc/hosts", "usr/bin/su"} <= left
    assert not left & {"etc/hostname", "etc/resolv.conf", "etc/shadow", "dev/null", "tmp/left", "usr/share/doc/x"}
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.root
def test_no_program_compiles_the_standard_library_anew():
    """Bytecode that is checked by its source's time is of no use: times are evened out, and the root is read-only."""
    built = ImageStore(Layout.of(os.environ).paths.images)
    compiled = list(built.rootfs(built.manifest("python")).glob("usr/lib/python3*/**/*.pyc"))
    assert len(compiled) > 300
    assert {file.name for file in compiled if file.read_bytes()[4:8] != b"\1\0\0\0"} == set()
