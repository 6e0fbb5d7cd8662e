"""The environments that processes run from: whole, closed to writing, and rebuilt exactly when something changed."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crucible_deploy import environments
from crucible_deploy.environments import EnvironmentsError, source_digest
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import make_home
from crucible_deploy.users import Account

CHECKOUT = Path(__file__).parents[2]
NOBODY = Account("nobody", 65534, 65534)


def test_the_checkout_is_found_from_its_own_code():
    assert environments.find_source() == CHECKOUT
    with pytest.raises(EnvironmentsError, match="set CRUCIBLE_SOURCE"):
        environments.find_source(Path("/usr"))


@pytest.fixture
def copy(tmp_path):
    """A checkout that may be changed."""
    for part in ("uv.lock", "worker", "monitor"):
        (tmp_path / part).mkdir() if part != "uv.lock" else (tmp_path / part).write_text("lock")
    for folder in ("monitor", "protos"):
        (tmp_path / folder / "src").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "pyproject.toml").write_text("x")
        (tmp_path / folder / "src" / "a.py").write_text("x")
    return tmp_path


def test_the_digest_changes_with_lock_sources_and_contracts_and_with_nothing_else(copy):
    python = environments.find_python()
    first = source_digest(copy, "monitor", python)
    (copy / "README.md").write_text("words")
    (copy / "monitor" / "src" / "__pycache__").mkdir()
    (copy / "monitor" / "src" / "__pycache__" / "a.pyc").write_text("x")
    assert source_digest(copy, "monitor", python) == first
    seen = {first}
    for name in ("uv.lock", "monitor/pyproject.toml", "monitor/src/a.py", "protos/src/a.py"):
        (copy / name).write_text("changed")
        seen.add(source_digest(copy, "monitor", python))
    (copy / "monitor" / "src" / "b.py").touch()
    seen.add(source_digest(copy, "monitor", python))
    assert len(seen) == 6


@pytest.mark.root
def test_an_environment_is_roots_readable_by_all_and_not_built_twice(layout, monkeypatch):
    monkeypatch.setattr(environments, "SOURCES", {"monitor": "monitor"})
    make_home(layout)
    before = os.umask(0o077)
    try:
        assert environments.ensure(layout, CHECKOUT, {"monitor": NOBODY}) == ["monitor"]
    finally:
        os.umask(before)
    target = layout.environment("monitor")
    for path in target.rglob("*"):
        found = path.lstat()
        assert found.st_uid == 0, path
        if not path.is_symlink():
            assert not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID), path
            assert found.st_mode & stat.S_IROTH, path
    assert list(target.rglob("crucible_monitor/__pycache__/*.pyc"))
    assert not list(target.rglob("crucible_gateway*"))
    assert environments.ensure(layout, CHECKOUT, {"monitor": NOBODY}) == []
    # As the service's user, without the checkout anywhere in its path.
    code = "import crucible_monitor, sys; print(crucible_monitor.__file__); print(sys.path)"
    python = environments.interpreter(layout, "monitor")
    who = {"user": 65534, "group": 65534, "extra_groups": [], "env": {}, "cwd": "/"}
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, **who)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(target))
    assert str(CHECKOUT) not in done.stdout
    # Something cut short is built anew, not trusted.
    (target / ".crucible-digest").unlink()
    shutil.rmtree(target / "lib")
    assert environments.ensure(layout, CHECKOUT, {"monitor": NOBODY}) == ["monitor"]


def test_build_whose_command_was_killed_does_not_go_on(layout, tmp_path):
    uv = layout.paths.uv
    uv.parent.mkdir(parents=True)
    uv.write_text('#!/bin/sh\necho $$ > "$UV_PROJECT_ENVIRONMENT.pid"\nexec sleep 600\n')
    uv.chmod(0o755)
    target = tmp_path / "environment"
    code = f"""
from pathlib import Path
from crucible_deploy import environments
from crucible_deploy.paths import Paths
paths = Paths(home=Path({str(layout.home)!r}), cache=Path({str(layout.paths.cache)!r}))
environments._build(paths, Path({str(target)!r}), Path("/"), "storage", Path({sys.executable!r}))
"""
    told = Path(f"{target}.pid")
    with subprocess.Popen([sys.executable, "-c", code]) as building:
        deadline = time.monotonic() + 30
        while not (told.exists() and told.read_text().strip()):
            assert building.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child = ProcessIdentity.of(int(told.read_text()))
        building.kill()
    assert child.wait_gone(10)
