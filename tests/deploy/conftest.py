import shutil
import tempfile
from pathlib import Path

import pytest

from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths


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
