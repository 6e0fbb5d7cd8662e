"""Images in layers, of `docker save` and OCI layouts: what the layers give together, and every digest checked."""

import gzip
import json
import os

import pytest

from tests.deploy import archives as a
from tests.deploy.archives import refused, tree

pytestmark = pytest.mark.root

LOWER = a.tar(
    a.folder("etc", 0o750), a.file("etc/one"), a.file("etc/two"), a.folder("var/deep/er"), a.file("var/deep/er/old"),
    a.file("var/kept"), a.symlink("link", "etc"), a.file("file-then-folder"), a.folder("folder-then-link"),
    a.file("folder-then-link/in"),
)  # fmt: skip


def layered(unpack, *layers):
    return tree(unpack(a.docker_save(*layers)))


def test_upper_layers_change_remove_and_hide_what_lower_ones_brought(unpack):
    upper = a.tar(
        a.folder("etc", 0o700), a.file("etc/two", b"new"), a.file("etc/.wh.one"), a.file(".wh.link"),
        a.file("var/deep/.wh..wh..opq"), a.file("var/deep/er/new"), a.folder("file-then-folder"),
        a.symlink("folder-then-link", "var"), a.file("none/.wh.never"), a.file(".wh.missing"),
    )  # fmt: skip
    assert layered(unpack, LOWER, upper) == {
        "etc": None, "etc/two": b"new", "var": None, "var/deep": None, "var/deep/er": None, "var/deep/er/new": b"x",
        "var/kept": b"x", "file-then-folder": None, "folder-then-link": "var",
    }  # fmt: skip


@pytest.mark.parametrize("whiteouts_first", [True, False])
def test_whiteouts_touch_nothing_of_their_own_layer_in_whatever_order(unpack, whiteouts_first):
    whiteouts = [a.file(".wh.var"), a.file("etc/.wh..wh..opq"), a.file(".wh.file-then-folder")]
    own = [a.file("var/deep/mine"), a.file("etc/mine"), a.file("file-then-folder", b"mine")]
    upper = a.tar(*(whiteouts + own if whiteouts_first else own + whiteouts))
    found = layered(unpack, LOWER, upper)
    assert found == {
        "etc": None, "etc/mine": b"x", "var": None, "var/deep": None, "var/deep/mine": b"x", "link": "etc",
        "file-then-folder": b"mine", "folder-then-link": None, "folder-then-link/in": b"x",
    }  # fmt: skip


def test_an_opaque_root_hides_all_that_was_there(unpack):
    assert layered(unpack, LOWER, a.tar(a.file("mine"), a.file(".wh..wh..opq"))) == {"mine": b"x"}


def test_notes_of_a_storage_driver_are_no_files(unpack):
    assert layered(unpack, a.tar(a.file("f"), a.file(".wh..wh.plnk"), a.file(".wh..wh.aufs"))) == {"f": b"x"}


def test_a_whiteout_in_a_plain_root_file_system_is_a_file(unpack):
    assert tree(unpack(a.tar(a.folder("etc"), a.file("etc/.wh.x")))) == {"etc": None, "etc/.wh.x": b"x"}


@pytest.mark.parametrize(
    ("name", "match"), [(".wh...", "leads out"), (".wh.", "names nothing"), ("etc/.wh..", "names nothing")]
)
def test_whiteouts_that_would_remove_something_else_are_refused(unpack, name, match):
    refused(unpack, a.docker_save(LOWER, a.tar(a.file(name))), match)


def test_whiteouts_do_not_follow_links(unpack, tmp_path):
    (tmp_path / "precious").touch()
    for name in (".wh.precious", ".wh..wh..opq"):
        refused(
            unpack,
            a.docker_save(a.tar(a.symlink("out", str(tmp_path))), a.tar(a.file(f"out/{name}"))),
            "a link or a file",
        )
    assert (tmp_path / "precious").exists()


def test_a_layer_that_writes_through_a_link_of_another_is_refused(unpack, tmp_path):
    refused(
        unpack, a.docker_save(a.tar(a.symlink("out", str(tmp_path))), a.tar(a.file("out/made"))), "a link or a file"
    )


UPPER = a.tar(a.file("etc/two", b"new"))
EXPECTED = {"etc/one": b"x", "etc/two": b"new"}


@pytest.mark.parametrize("old", [True, False])
def test_docker_save_is_read_in_both_forms(unpack, old):
    found = layered(unpack, LOWER, UPPER) if not old else tree(unpack(a.docker_save(LOWER, UPPER, old=True)))
    assert found.items() >= EXPECTED.items()
    assert (unpack.said.format, unpack.said.layers) == ("docker", 2)
    assert unpack.said.config == a.digest(a.config([LOWER, UPPER]))


def test_docker_save_through_gzip_and_with_linked_layers(unpack):
    config = a.config([LOWER, LOWER])
    manifest = json.dumps(
        [{"Config": f"{a.digest(config)[7:]}.json", "RepoTags": None, "Layers": ["1/layer.tar", "2/layer.tar"]}]
    )
    archive = a.tar(
        a.file("1/layer.tar", LOWER), a.symlink("2/layer.tar", "../1/layer.tar"),
        a.file(f"{a.digest(config)[7:]}.json", config), a.file("manifest.json", manifest.encode()),
    )  # fmt: skip
    assert "etc/one" in tree(unpack(gzip.compress(archive)))
    looped = a.tar(
        a.symlink("1/layer.tar", "../2/layer.tar"), a.symlink("2/layer.tar", "../1/layer.tar"),
        a.file(f"{a.digest(config)[7:]}.json", config), a.file("manifest.json", manifest.encode()),
    )  # fmt: skip
    refused(unpack, looped, "lacks its file")


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("as_folder", [True, False])
def test_an_oci_layout_is_read_as_tar_and_as_folder(unpack, tmp_path, compress, as_folder):
    files = a.oci_files(LOWER, UPPER, compress=compress)
    if as_folder:
        source = write(tmp_path / "layout", files)
        source.chmod(0o700)  # root alone can read it: the unpacking process is given what it needs
        found = tree(unpack(source))
    else:
        found = tree(unpack(a.oci_tar(files)))
    assert found.items() >= EXPECTED.items()
    assert unpack.said.format == "oci"


def test_a_link_in_the_folder_of_a_layout_is_not_followed(unpack, tmp_path):
    files = a.oci_files(LOWER)
    source = write(tmp_path / "layout", files)
    (source / "index.json").rename(tmp_path / "elsewhere")
    (source / "index.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        unpack(source)
    with pytest.raises(Exception, match="no OCI image layout"):
        unpack(tmp_path)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_image_of_this_machine_is_chosen_and_another_machines_is_refused(unpack):
    own, other = {"os": "linux", "architecture": a.ARCHITECTURE}, {"os": "linux", "architecture": "s390x"}
    nothing = {"os": "unknown", "architecture": "unknown"}
    files = a.oci_files(LOWER, platforms=[other, own, nothing])
    assert "etc/one" in tree(unpack(a.oci_tar(files)))
    refused(unpack, a.oci_tar(a.oci_files(LOWER, platforms=[other])), "no image for linux")
    changed = a.config([LOWER], architecture="s390x")
    refused(unpack, a.oci_tar(a.oci_files(LOWER, changed_config=changed)), "this machine is linux on")
    refused(unpack, a.docker_save(LOWER, changed_config=changed), "this machine is linux on")


def test_one_of_several_images_is_chosen_by_its_tag(unpack):
    first, second = (a.oci_files(a.tar(a.file(name)), tag=name) for name in ("first", "second"))
    both = json.loads(first["index.json"])
    both["manifests"] += json.loads(second["index.json"])["manifests"]
    archive = a.oci_tar({**first, **second, "index.json": json.dumps(both).encode()})
    assert tree(unpack(archive, tag="second")) == {"second": b"x"}
    assert "first" in refused(unpack, archive, "2 images")
    refused(unpack, archive, 'no image is tagged "third"', tag="third")
    assert tree(unpack(a.docker_save(a.tar(a.file("f")), tags=("x:1", "x:2")), tag="x:2")) == {"f": b"x"}
    refused(unpack, a.docker_save(LOWER), "no image is tagged", tag="other:1")
    refused(unpack, a.tar(a.file("etc/x")), "has no tags", tag="other:1")


# --- digests ---


def changed(files, name, content):
    return a.oci_tar({**files, name: content})


def test_a_digest_that_does_not_match_is_refused_wherever_it_is(unpack):
    other = a.tar(a.file("etc/one", b"other"), a.file("padding", os.urandom(10)))
    assert "digest" in refused(unpack, a.docker_save(LOWER, changed_layers=[other]), "damaged")
    refused(unpack, a.docker_save(LOWER, changed_config=a.config([other])), "damaged")
    for files in (a.oci_files(LOWER), a.oci_files(LOWER, compress=True)):
        layer = next(name for name, content in files.items() if content in (LOWER, gzip.compress(LOWER, mtime=0)))
        refused(unpack, changed(files, layer, files[layer][:-1]), "bytes, its descriptor says")
        refused(unpack, changed(files, layer, files[layer][:-1] + b"x"), "damaged|too early")
        manifest = next(name for name, content in files.items() if b'"layers"' in content and b'"config"' in content)
        refused(unpack, changed(files, manifest, files[manifest] + b" "), "not what its descriptor says")
        config = next(name for name, content in files.items() if b'"diff_ids"' in content)
        refused(unpack, changed(files, config, files[config] + b" "), "not what its descriptor says")
        refused(
            unpack, a.oci_tar({name: content for name, content in files.items() if name != layer}), "lacks its file"
        )
    wrong = a.config([other])
    refused(unpack, a.oci_tar(a.oci_files(LOWER, changed_config=wrong)), "its description says")


def test_a_name_that_is_not_the_configurations_digest_is_refused(unpack):
    manifest = json.dumps([{"Config": "0" * 64 + ".json", "RepoTags": [], "Layers": ["l"]}]).encode()
    archive = a.tar(
        a.file("0" * 64 + ".json", a.config([LOWER])), a.file("l", LOWER), a.file("manifest.json", manifest)
    )
    refused(unpack, archive, "has the digest")


RUBBISH = {
    "nothing": b"", "cut": b"{", "list": b"[]", "object": b"{}", "number": b"[1]", "null": b"null",
    "number in a list": b'{"manifests": [1]}', "wrong digest": b'{"manifests": [{"digest": 7}]}',
    "deep": b"[" * 100_000,
    "half a character": b'[{"Config": "\\ud800", "RepoTags": ["\\ud800"], "Layers": ["x"]}]',
    "wrong type": b'[{"Config": 1}]', "large number": b"9" * 10_000,
}  # fmt: skip


@pytest.mark.parametrize("content", RUBBISH)
def test_rubbish_where_a_description_should_be_is_one_clear_error(unpack, content):
    content = RUBBISH[content]
    refused(unpack, a.tar(a.file("manifest.json", content)), ".")
    files = a.oci_files(LOWER)
    refused(unpack, changed(files, "index.json", content), ".")
    refused(unpack, changed(files, "oci-layout", content), ".")
    refused(unpack, a.docker_save(LOWER, changed_config=content), ".")


def test_compressions_that_are_not_supported_are_named(unpack):
    zstd = a.oci_files(LOWER, kind="application/vnd.oci.image.layer.v1.tar+zstd")
    refused(unpack, a.oci_tar(zstd), "zstd, which is not supported")
    hidden = b"\x28\xb5\x2f\xfd" + os.urandom(600)
    refused(unpack, a.docker_save(hidden), "zstd, which is not supported")
    odd = a.oci_files(LOWER, kind="application/x-squashfs")
    refused(unpack, a.oci_tar(odd), "not supported")


def test_a_description_without_end_is_refused(unpack):
    files = a.oci_files(LOWER)
    index = json.loads(files["index.json"])
    index["manifests"][0]["mediaType"] = "application/vnd.oci.image.index.v1+json"
    refused(unpack, changed(files, "index.json", json.dumps(index).encode()), "index is damaged")
    refused(unpack, a.docker_save(*[a.tar(a.file("f"))] * 300), "layers; 1 to|entries")
