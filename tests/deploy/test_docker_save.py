"""What a real Docker daemon saves is what is imported: layers of its own making, one of which removes files."""

import re
import subprocess
from pathlib import Path

import pytest
from docker import APIClient

from crucible_deploy import docker_daemon, unpacking
from tests.conformance.conftest import newest_runsc
from tests.deploy import archives as a
from tests.deploy.archives import tree

pytestmark = pytest.mark.root

RM = "/usr/bin/rm"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A `docker save` of an image of two layers: an imported tree, and what a container changed in it."""
    with docker_daemon.running(newest_runsc()) as daemon:
        client = APIClient(base_url=daemon.address, timeout=60)
        client.import_image_from_data(base(), repository="base", tag="1")
        host = client.create_host_config(network_mode="none")
        container = client.create_container("base:1", [RM, "-r", "/etc/gone", "/etc/file"], host_config=host)["Id"]
        client.start(container)
        assert client.wait(container)["StatusCode"] == 0
        client.put_archive(container, "/", a.tar(a.file("etc/added", b"later"), a.symlink("etc/link", "/etc/added")))
        client.commit(container, repository="test", tag="1")
        target = tmp_path_factory.mktemp("docker") / "saved.tar"
        with target.open("wb") as stream:
            for piece in client.get_image("test:1"):
                stream.write(piece)
        client.close()
    return target


def base():
    """`rm` with what it needs, and some files for it."""
    listed = subprocess.run(["ldd", RM], capture_output=True, text=True, check=True).stdout
    needed = [RM, *re.findall(r"/\S+", listed)]
    files = [a.file(one[1:], Path(one).read_bytes(), 0o755) for one in needed]
    return a.tar(*files, a.folder("etc/gone"), a.file("etc/gone/in"), a.file("etc/file"), a.file("etc/kept", b"kept"))


def test_an_image_of_a_real_docker_daemon_is_imported(saved, tmp_path):
    said = unpacking.unpack(saved, tmp_path, tag="test:1")
    assert (said.format, said.layers) == ("docker", 2)
    found = tree(tmp_path / "rootfs")
    assert {name: content for name, content in found.items() if name.startswith("etc/")}.items() >= {
        "etc/kept": b"kept", "etc/added": b"later", "etc/link": "/etc/added",
    }.items()  # fmt: skip
    assert not found.keys() & {"etc/gone", "etc/gone/in", "etc/file", "etc/.wh.gone", "etc/.wh.file"}
    assert found[RM[1:]] == Path(RM).read_bytes()
