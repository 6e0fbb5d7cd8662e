"""The bundle: nothing of the host in it, and nothing more than the init needs."""

from __future__ import annotations

import json
from pathlib import Path

from crucible_executor import bundle
from crucible_executor.images import Image
from crucible_executor.model import SandboxClass

CLASS = SandboxClass("sha256:" + "a" * 64, 64 << 20, 12345, None, 1, 8)
TREE = Image("python", CLASS.image_digest, Path("/images/rootfs"), None)
PACKED = Image("python", CLASS.image_digest, Path("/images/rootfs"), Path("/images/rootfs.erofs"))


def made(image: Image) -> dict:
    return json.loads(bundle.config(image, CLASS, empty_root=Path("/run/empty")))


def test_no_path_of_the_host_is_mounted():
    for image in (TREE, PACKED):
        assert {mount["type"] for mount in made(image)["mounts"]} == {"proc", "tmpfs"}


def test_tmpfs_have_the_size_of_the_class():
    sizes = {m["destination"]: m["options"] for m in made(TREE)["mounts"] if m["type"] == "tmpfs"}
    assert set(sizes) == {"/workspace", "/tmp", "/dev/shm"}
    assert all("size=12345" in options for options in sizes.values())


def test_root_is_read_only_and_the_packed_image_is_preferred():
    assert made(TREE)["root"] == {"path": "/images/rootfs", "readonly": True}
    assert "annotations" not in made(TREE)
    packed = made(PACKED)
    assert packed["root"] == {"path": "/run/empty", "readonly": True}
    assert packed["annotations"]["dev.gvisor.spec.rootfs.source"] == "/images/rootfs.erofs"


def test_init_has_four_capabilities_and_nothing_of_our_environment():
    process = made(TREE)["process"]
    assert process["noNewPrivileges"] is True
    assert process["env"] == []
    expected = ["CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"]
    assert process["capabilities"] == dict.fromkeys(("bounding", "effective", "permitted"), expected)
    assert "inheritable" not in process["capabilities"]
    assert "ambient" not in process["capabilities"]
