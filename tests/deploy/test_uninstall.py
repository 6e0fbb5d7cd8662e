import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_deploy import private_homes, record, users
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import Layout, make_home
from crucible_deploy.paths import MARKER, Paths, mark
from crucible_deploy.uninstall import Uninstall, UninstallError


@pytest.fixture
def layout(home):
    """An installation below the temporary folder, so that all but the real stack can be tried without root."""
    return Layout(Paths(home=home, cache=home.parent / "cache", run=home.parent / "run"))


@pytest.fixture
def installed(layout):
    """Marked folders with something in them, and no more: no users, no cgroups."""
    for folder in (layout.home, layout.paths.cache, layout.runtime):
        (folder / "deep" / "er").mkdir(parents=True)
        mark(folder)
    return layout


@pytest.fixture
def uninstall(installed, tmp_path):
    for name in ("cgroup", "private"):
        (tmp_path / name).mkdir()
    return Uninstall(installed, cgroup_root=tmp_path / "cgroup", private_parent=tmp_path / "private")


def test_it_removes_what_was_made_and_says_so(uninstall, installed):
    said = list(uninstall.run())
    assert said == [f"folder {folder}" for folder in (installed.home, installed.runtime, installed.paths.cache)]
    assert not any(folder.exists() for folder in (installed.home, installed.runtime, installed.paths.cache))
    assert list(uninstall.run()) == []


@pytest.mark.parametrize("which", ["home", "cache", "runtime"])
def test_a_folder_without_the_marker_stops_it_before_anything_is_removed(uninstall, installed, which):
    folder = {"home": installed.home, "cache": installed.paths.cache, "runtime": installed.runtime}[which]
    (folder / MARKER).unlink()
    with pytest.raises(UninstallError, match="was not made by Crucible"):
        list(uninstall.run())
    assert (installed.home / "deep").exists()
    assert (installed.paths.cache / "deep").exists()


@pytest.mark.parametrize("path", ["/", "/usr", "/home", "/etc", "/tmp"])
def test_a_folder_of_the_system_is_never_removed(path, tmp_path):
    uninstall = Uninstall(Layout(Paths(home=Path(path), cache=tmp_path / "none")))
    with pytest.raises(UninstallError):
        uninstall.folders()


def test_a_marked_folder_that_holds_the_checkout_is_refused(uninstall, installed):
    holder = dataclasses.replace(uninstall, checkout=installed.home / "src")
    with pytest.raises(UninstallError, match="holds more than Crucible"):
        list(holder.run())
    assert installed.home.exists()


def test_a_link_in_place_of_a_folder_is_not_followed(layout, tmp_path):
    (tmp_path / "other").mkdir()
    mark(tmp_path / "other")
    layout.home.symlink_to(tmp_path / "other")
    with pytest.raises(UninstallError):
        list(Uninstall(layout, cgroup_root=tmp_path, private_parent=tmp_path).run())
    assert (tmp_path / "other" / MARKER).exists()


def test_the_checkouts_environment_goes_only_when_set_up_made_it(uninstall, installed, tmp_path):
    environment = tmp_path / "checkout" / ".venv"
    environment.mkdir(parents=True)
    (environment / "pyvenv.cfg").touch()
    with_checkout = dataclasses.replace(uninstall, checkout=tmp_path / "checkout")
    assert environment not in with_checkout.folders()
    mark(environment)
    assert f"folder {environment}" in list(with_checkout.run())
    assert not environment.exists()


def test_it_waits_for_no_set_up_but_says_that_one_runs(uninstall, installed):
    with (installed.paths.cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UninstallError, match="set-up is running"):
            list(uninstall.run())
    assert (installed.home / "deep").exists()


def test_its_cgroups_go_with_all_below_them_and_no_others(uninstall):
    name = uninstall.layout.cgroup
    for folder in (f"memory/{name}/run-1", f"pids/{name}", name, "memory/crucible-of-another", "system.slice"):
        (uninstall.cgroup_root / folder).mkdir(parents=True)
    said = list(uninstall.run())
    assert [line for line in said if line.startswith("cgroup")] == [
        f"cgroup {uninstall.cgroup_root / folder}" for folder in (name, f"memory/{name}", f"pids/{name}")
    ]
    assert (uninstall.cgroup_root / "memory/crucible-of-another").exists()
    assert (uninstall.cgroup_root / "system.slice").exists()


@pytest.mark.root
def test_a_running_stack_is_stopped_first(layout, tmp_path):
    make_home(layout)
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    identities = [ProcessIdentity.of(sleeper.pid) for sleeper in sleepers]
    try:
        # A pid that is another process's by now must not be touched.
        reused = ProcessIdentity(identities[2].pid, identities[2].start_time - 1)
        processes = {"storage": identities[1], "gateway": reused}
        record.write(layout, record.Record(identities[0], "127.0.0.1:1", True, processes))
        said = list(Uninstall(layout, cgroup_root=tmp_path, private_parent=tmp_path).run())
        assert said[0] == f"the running stack (supervisor {sleepers[0].pid})"
        assert said[1] == f"process {sleepers[1].pid} (storage)"
        assert [identity.alive for identity in identities] == [False, False, True]
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    assert not layout.home.exists()


@pytest.mark.root
def test_a_real_cgroup_with_a_living_process_is_emptied_and_removed(installed, tmp_path):
    roots = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]
    root = next(root for root in roots if (root / "cgroup.procs").exists())
    uninstall = Uninstall(installed, cgroup_root=root, private_parent=tmp_path)
    folder = root / installed.cgroup
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        (folder / "run").mkdir(parents=True)
        (folder / "run" / "cgroup.procs").write_text(str(sleeper.pid))
        assert f"cgroup {folder}" in list(uninstall.run())
        assert sleeper.wait(timeout=10) == -9
        assert not folder.exists()
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.root
def test_users_that_crucible_did_not_make_stay(uninstall, installed):
    (installed.home / "users.json").write_text('{"made": ["daemon", "crucible-no-such-user"]}')
    assert users.made_by(installed.home) == ["crucible-no-such-user"]
    assert not [line for line in uninstall.run() if line.startswith("user")]


@pytest.mark.root
def test_what_a_killed_private_stack_left_goes_too_and_one_in_use_stays(uninstall):
    parent = uninstall.private_parent
    left, in_use = (private_homes.make(parent / "cache", parent=parent).home for _ in range(2))
    (left / "maker.json").write_text('{"pid": 1, "start_time": 0}')  # no such process
    assert f"private stack {left}" in list(uninstall.run())
    assert [one.layout.home for one in private_homes.found(parent)] == [in_use]
    [named] = map(str, private_homes.found(parent))
    assert str(in_use) in named
    assert f"process {os.getpid()}" in named


@pytest.mark.root
def test_where_nothing_is_installed_there_is_nothing_to_remove_and_doctor_says_what_to_do(tmp_path):
    package = Path(__file__).resolve().parents[2] / "deploy" / "src"
    env = {"PATH": "/usr/bin:/bin", "CRUCIBLE_HOME": str(tmp_path / "home"), "CRUCIBLE_CACHE": str(tmp_path / "cache")}
    command = ["/usr/bin/python3", "-B", "-m", "crucible_deploy.uninstall", "--private", str(tmp_path)]
    alone = env | {"PYTHONPATH": str(package)}
    done = subprocess.run(command, env=alone, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "There was nothing to remove.\n")
    doctor = [sys.executable, "-m", "crucible_client", "doctor", "--json"]
    asked = subprocess.run(doctor, env=env, capture_output=True, text=True, timeout=60, check=False)
    said = json.loads(asked.stdout)
    assert (asked.returncode, said["fit"]) == (1, False)
    todo = {check["name"]: check["mend"] for check in said["checks"] if check["status"] != "ok"}
    assert {"uv", "runsc", "init", "image", "sandbox"} <= set(todo)
    assert all(mend.startswith("make setup") for name, mend in todo.items() if name in ("uv", "runsc", "init", "image"))
    assert not list(tmp_path.iterdir())  # neither of them made anything


def test_the_command_works_without_an_environment_and_refuses_without_root(tmp_path):
    script = Path(__file__).resolve().parents[2] / "deploy" / "install" / "uninstall"
    as_root = os.getuid() == 0
    done = subprocess.run(
        [str(script)],
        env={"PATH": "/usr/bin:/bin", "CRUCIBLE_HOME": "/", "CRUCIBLE_CACHE": "/nowhere/cache"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert ("was not made by Crucible" if as_root else "must run as root") in done.stderr
