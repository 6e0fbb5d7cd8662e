"""Folders and ports of a home."""

import os
import stat
from pathlib import Path

import pytest

from crucible_deploy.layout import Layout, LayoutError, make_home
from crucible_deploy.paths import MARKER, Paths


def test_variables_choose_home_cache_and_ports():
    layout = Layout.of({"CRUCIBLE_HOME": "/srv/c", "CRUCIBLE_CACHE": "/srv/k", "CRUCIBLE_PORT_OFFSET": "1000"})
    assert layout.home == Path("/srv/c")
    assert layout.paths.cache == Path("/srv/k")
    assert layout.address("gateway") == "127.0.0.1:9443"
    assert len(set(layout.ports())) == 9


@pytest.mark.parametrize("offset", ["-1", "x", "50001", "²", "1.5"])
def test_a_bad_offset_is_one_clear_line(offset):
    with pytest.raises(LayoutError, match="CRUCIBLE_PORT_OFFSET must be a whole number"):
        Layout.of({"CRUCIBLE_PORT_OFFSET": offset})


def test_homes_do_not_share_what_lives_outside_them():
    layouts = [Layout(Paths(home=Path(home))) for home in ("/var/lib/crucible", "/srv/a", "/srv/b")]
    assert len({layout.runtime for layout in layouts}) == 3
    assert len({layout.instance for layout in layouts}) == 3
    assert layouts[0].runtime == Path("/run/crucible")


@pytest.mark.root
def test_modes_do_not_depend_on_the_umask(layout):
    before = os.umask(0)
    try:
        make_home(layout)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (layout.home, *layout.home.iterdir())}
    assert modes == {
        "home": 0o755, MARKER: 0o644, "pki": 0o755, "state": 0o755, "envs": 0o755, "log": 0o700, "run": 0o700
    }  # fmt: skip


@pytest.mark.root
def test_a_folder_with_something_of_somebody_else_is_refused(layout):
    layout.home.mkdir()
    (layout.home / "thesis.tex").touch()
    with pytest.raises(LayoutError, match="was not made by Crucible"):
        make_home(layout)
    assert [path.name for path in layout.home.iterdir()] == ["thesis.tex"]


@pytest.mark.root
def test_a_home_that_other_users_cannot_reach_is_refused(layout):
    layout.home.parent.chmod(0o700)
    with pytest.raises(LayoutError, match="other users cannot enter"):
        make_home(layout)
