import shutil
import tempfile
from pathlib import Path

import pytest

from crucible_deploy import unpacking
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from tests.deploy.archives import SMALL


@pytest.fixture
def home():
    """A folder that every user can reach, unlike pytest's own; with its runtime folder it is gone afterwards."""
    base = Path(tempfile.mkdtemp(prefix="crucible-test-", dir="/tmp"))
    base.chmod(0o755)
    yield base / "home"
    shutil.rmtree(base)


@pytest.fixture
def layout(home):
    made = Layout(Paths(home=home, cache=home.parent / "cache"))
    yield made
    shutil.rmtree(made.runtime, ignore_errors=True)


@pytest.fixture
def unpack(tmp_path):
    """Unpacks bytes and returns the tree, or raises."""

    def run(content, *, bounds=SMALL, **options):
        source, work = tmp_path / "archive", tmp_path / "work"
        if isinstance(content, bytes):
            source.write_bytes(content)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        run.said = unpacking.unpack(source if isinstance(content, bytes) else content, work, bounds=bounds, **options)
        return work / "rootfs"

    return run
