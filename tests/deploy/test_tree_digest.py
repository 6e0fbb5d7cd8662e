import hashlib
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_deploy.tree_digest import UnfitTreeError, tree_digest

OWNER = os.getuid()


def digest(root):
    return tree_digest(root, owner=OWNER)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "env").write_bytes(b"#!")
    (root / "usr" / "bin" / "sh").symlink_to("env")
    (root / "tmp").mkdir()
    for path in (root, *root.rglob("*")):
        os.chown(path, OWNER, OWNER, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o755)
    return root


def test_the_digest_is_what_its_description_says(tree):
    content = hashlib.sha256(b"#!").hexdigest().encode()
    fields = [
        (b".", b"d", b"0755", b""),
        (b"tmp", b"d", b"0755", b""),
        (b"usr", b"d", b"0755", b""),
        (b"usr/bin", b"d", b"0755", b""),
        (b"usr/bin/env", b"f", b"0755", content),
        (b"usr/bin/sh", b"l", b"0777", b"env"),
    ]
    described = b"crucible-tree-v1\0" + b"".join(b"\0".join(entry) + b"\0" for entry in fields)
    assert digest(tree) == f"sha256:{hashlib.sha256(described).hexdigest()}"


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "usr/bin/env").write_bytes(b"#?"),
        lambda root: (root / "usr/bin/env").chmod(0o700),
        lambda root: (root / "tmp").chmod(0o1777),
        lambda root: (root / "usr/bin/env").rename(root / "usr/bin/ENV"),
        lambda root: ((root / "usr/bin/sh").unlink(), (root / "usr/bin/sh").symlink_to("/bin/env")),
        lambda root: ((root / "usr/bin/sh").unlink(), (root / "usr/bin/sh").write_bytes(b"env")),
        lambda root: (root / "tmp").rmdir(),
    ],
)
def test_every_change_of_content_changes_the_digest(tree, change):
    before = digest(tree)
    change(tree)
    for path in tree.rglob("*"):
        os.chown(path, OWNER, OWNER, follow_symlinks=False)
    assert digest(tree) != before


def test_times_and_hard_links_do_not_matter(tree):
    before = digest(tree)
    os.utime(tree / "usr/bin/env", (1, 1))
    copy = tree / "usr/bin/copy"
    copy.write_bytes(b"#!")
    copy.chmod(0o755)
    os.chown(copy, OWNER, OWNER)
    with_copy = digest(tree)
    copy.unlink()
    assert digest(tree) == before
    os.link(tree / "usr/bin/env", copy)
    assert digest(tree) == with_copy


def test_a_socket_or_a_pipe_is_refused(tree):
    os.mkfifo(tree / "pipe")
    os.chown(tree / "pipe", OWNER, OWNER)
    with pytest.raises(UnfitTreeError, match="pipe"):
        digest(tree)
    (tree / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
        os.chown(tree / "socket", OWNER, OWNER)
        with pytest.raises(UnfitTreeError, match="socket"):
            digest(tree)


def test_a_foreign_owner_is_refused(tree):
    with pytest.raises(UnfitTreeError, match="belongs to"):
        tree_digest(tree, owner=OWNER + 1)


def test_an_extended_attribute_is_refused(tree):
    try:
        os.setxattr(tree / "usr/bin/env", "user.note", b"x")
    except OSError:
        pytest.skip("this file system has no extended attributes for users")
    with pytest.raises(UnfitTreeError, match=r"user\.note"):
        digest(tree)


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name not in {".", ".."}
)


@settings(max_examples=40, deadline=None)
@given(one=st.dictionaries(names, st.binary(max_size=8), max_size=4), two=st.dictionaries(names, st.binary(max_size=8)))
def test_two_folders_of_files_have_one_digest_exactly_when_they_are_equal(tmp_path_factory, one, two):
    digests = []
    for files in (one, two):
        root = Path(tmp_path_factory.mktemp("tree"))
        root.chmod(0o755)
        for name, content in files.items():
            (root / name).write_bytes(content)
            (root / name).chmod(0o644)
        for path in (root, *root.iterdir()):
            os.chown(path, OWNER, OWNER)
        digests.append(digest(root))
    assert (digests[0] == digests[1]) == (one == two)
