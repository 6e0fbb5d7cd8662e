import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
NOBODY = 65534


@pytest.fixture
def checkout():
    """The parts of a checkout that set-up itself is made of, where every user can read them."""
    base = Path(tempfile.mkdtemp(prefix="crucible-setup-", dir="/tmp"))
    base.chmod(0o755)
    for part in ("deploy/install", "deploy/src/crucible_deploy"):
        shutil.copytree(TOP / part, base / part, ignore=shutil.ignore_patterns("__pycache__"))
    yield base
    shutil.rmtree(base)


def run(checkout, *arguments, user=None, path="", script="deploy/install/setup", **environment):
    """Runs a script with an almost empty environment."""
    user = NOBODY if user is None and os.getuid() == 0 else user
    environment = {
        "PATH": f"{path}:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "CRUCIBLE_CACHE": f"{checkout}/cache",
    } | environment
    return subprocess.run(
        [str(checkout / script), *arguments],
        env=environment, user=user, group=user, extra_groups=[] if user else None, cwd="/",
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def tool(checkout, name, script):
    """Puts a program before the system's own."""
    folder = checkout / "tools"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    folder.chmod(0o755)
    return str(folder)


def contents(folder):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def test_without_root_it_says_so_and_changes_nothing(checkout):
    before = contents(checkout)
    done = run(checkout)
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert "sudo make" in done.stderr
    assert done.stdout == ""
    assert contents(checkout) == before


def test_on_another_system_it_names_all_that_is_wrong_at_once(checkout):
    tools = tool(checkout, "uname", "echo Darwin")
    before = contents(checkout)
    done = run(checkout, path=tools)
    assert done.returncode == 1
    assert "Darwin" in done.stderr
    assert "Debian 12 or later" in done.stderr
    assert "sudo make" in done.stderr
    assert contents(checkout) == before


def test_a_full_disk_is_told_before_anything_is_done(checkout):
    tools = tool(checkout, "df", 'echo "Filesystem 1M-blocks Used Available"; echo "x 100 90 10 90% /"')
    done = run(checkout, path=tools)
    assert done.returncode == 1
    assert "10 MB free" in done.stderr
    assert not (checkout / "cache").exists()


@pytest.mark.parametrize("folder", ["/", "/usr", "relative", ""])
def test_a_cache_that_is_no_folder_of_its_own_is_refused(checkout, folder):
    done = run(checkout, CRUCIBLE_CACHE=folder, CRUCIBLE_HOME=folder or "/")
    assert done.returncode == 1
    assert "folders" in done.stderr


def test_a_cache_that_holds_other_things_is_refused(checkout):
    (checkout / "cache").mkdir()
    (checkout / "cache" / "photos").touch()
    done = run(checkout)
    assert done.returncode == 1
    assert "photos, which is not Crucible's" in done.stderr


def test_the_environment_alone_needs_no_root_but_says_when_there_is_no_uv(checkout):
    tools = tool(checkout, "uv", "echo uv 0.0.1")
    done = run(checkout, "environment", path=tools)
    assert done.returncode == 1
    assert "sudo make setup" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.root
@pytest.mark.parametrize(
    "release", ["ID=fedora\nVERSION_ID=42", "ID=debian\nVERSION_ID=11", 'ID=ubuntu\nVERSION_ID="20.04"', ""]
)
def test_another_distribution_is_refused_and_nothing_changes(checkout, release):
    (checkout / "os-release").write_text(release)
    mounted = f"mount --bind {checkout}/os-release /etc/os-release && exec {checkout}/deploy/install/setup"
    before = contents(checkout)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted],
        env={"PATH": "/usr/bin:/bin", "CRUCIBLE_CACHE": f"{checkout}/cache"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "system" in done.stderr
    assert contents(checkout) == before


def ask(checkout, function, path):
    """What a function of the shell part says of a runsc."""
    package = checkout / "deploy/src/crucible_deploy"
    script = f". {package}/versions.env; . {package}/machine_checks.sh; {function} {path}"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True).stdout


def test_a_wrapper_a_dynamic_runsc_and_none_are_refused(checkout):
    wrapper = Path(tool(checkout, "runsc", "echo runsc version release-20990101.0")) / "runsc"
    assert ask(checkout, "runsc_fault", checkout / "none") == "not there"
    assert ask(checkout, "runsc_fault", wrapper) == "no ELF binary"
    assert ask(checkout, "runsc_fault", "/bin/true") == "dynamically linked"


@pytest.mark.parametrize(("version", "date"), [("release-20250101.0", "20250101"), ("0.0~20221219.0-1+b5", "20221219")])
def test_a_release_of_runsc_tells_its_date(checkout, version, date):
    wrapper = Path(tool(checkout, "runsc", f"echo runsc version {version}; echo spec: 1.2.1")) / "runsc"
    assert ask(checkout, "runsc_date", wrapper) == date


@pytest.mark.parametrize(("date", "fault"), [("20260527", ""), ("20221219", "of 20221219, too old")])
def test_a_runsc_that_go_built_tells_its_date_by_its_build_information(checkout, date, fault):
    built = checkout / "runsc"
    built.write_bytes(b"\x7fELF\0mod\tgvisor.dev/gvisor\tv0.0.0-%s191743-a81fd9dd382e\th1:x\n" % date.encode())
    built.chmod(0o755)
    found = ask(checkout, "runsc_fault", built)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)
