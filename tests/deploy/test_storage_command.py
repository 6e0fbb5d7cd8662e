"""`crucible storage`: storage's own code, as its own user, without privilege; backups are files of root's alone."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from crucible_deploy import storage_command, users
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths

pytestmark = pytest.mark.root

NOBODY = users.Account("nobody", 65534, 65534)
_INSTEAD = """#!/bin/sh
echo "$@"
echo "user $(id -u) $(id -G)"
grep -E 'CapBnd|NoNewPrivs' /proc/self/status
env | grep CRUCIBLE_
echo "state $CRUCIBLE_STORAGE_STATE" >&2
cat
[ "$4" = fail ] || [ "$4" = check ] && exit 1
exit 0
"""


@pytest.fixture
def layout(monkeypatch):
    """A home whose storage has an interpreter that says how it was called."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    made = Layout(Paths(home=home))
    program = made.environment("storage") / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(_INSTEAD)
    program.chmod(0o755)
    monkeypatch.setenv("CRUCIBLE_HOME", str(home))
    monkeypatch.setenv("CRUCIBLE_SECRET_OF_ROOT", "x")
    monkeypatch.setattr(users, "existing", lambda process: NOBODY)
    yield made
    shutil.rmtree(home)


def run(*arguments, capfd):
    ran = CliRunner().invoke(storage_command.storage, arguments, standalone_mode=False)
    out, err = capfd.readouterr()
    return ran, out, err


def test_it_runs_as_storages_user_with_storages_settings_and_no_privilege(layout, capfd):
    ran, out, _ = run("usage", "--json", capfd=capfd)
    assert ran.return_value == 0
    assert out.startswith("-I -m crucible_storage.maintenance usage --json\nuser 65534 65534\n")
    assert "CapBnd:\t0000000000000000" in out
    assert "NoNewPrivs:\t1" in out
    assert f"CRUCIBLE_STORAGE_STATE={layout.state('storage')}" in out
    assert "SECRET_OF_ROOT" not in out
    assert "BOOTSTRAP" not in out


def test_the_exit_code_of_a_check_is_the_commands_own(layout, capfd):
    ran, out, _ = run("check", "--faults", "7", capfd=capfd)
    assert ran.return_value == 1
    assert "check --faults 7\n" in out


def test_a_backup_is_a_new_file_that_root_alone_can_read(layout, tmp_path, capfd):
    file = tmp_path / "b.tar"
    assert run("backup", str(file), capfd=capfd)[0].return_value == 0
    assert file.read_text().startswith("-I -m crucible_storage.maintenance backup\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar"]
    ran, _, _ = run("backup", str(file), capfd=capfd)
    assert "exists; name a new file" in str(ran.exception)


def test_a_backup_that_fails_leaves_no_file(layout, tmp_path, capfd):
    program = layout.environment("storage") / "bin" / "python"
    program.write_text("#!/bin/sh\necho half of it\nexit 1\n")
    assert run("backup", str(tmp_path / "b.tar"), capfd=capfd)[0].return_value == 1
    assert list(tmp_path.iterdir()) == []
    ran, _, _ = run("backup", str(tmp_path / "nowhere" / "b.tar"), capfd=capfd)
    assert "cannot be written: No such file or directory" in str(ran.exception)


def test_what_a_killed_backup_left_is_named(layout, tmp_path, capfd):
    (tmp_path / "b.tar.partial").write_text("half of it")
    ran, _, _ = run("backup", str(tmp_path / "b.tar"), capfd=capfd)
    assert "b.tar.partial cannot be written: File exists" in str(ran.exception)


def test_a_backup_that_only_root_can_read_is_handed_over(layout, tmp_path, capfd):
    file = tmp_path / "b.tar"
    file.write_text("the archive")
    file.chmod(0o600)
    assert "the archive" in run("restore", str(file), capfd=capfd)[1]
    assert "check --faults 20 --backup\n" in run("check", str(file), capfd=capfd)[1]


def test_what_is_missing_is_said(layout, monkeypatch, capfd):
    shutil.rmtree(layout.environment("storage"))
    assert "storage is not installed under" in str(run("usage", capfd=capfd)[0].exception)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "must be started as root" in str(run("usage", capfd=capfd)[0].exception)
