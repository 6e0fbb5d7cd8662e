"""Each judge of the hostile programs can say that harm was done: the harm is done here, by the test itself."""

import os
import secrets
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from crucible_client import Exited, State
from crucible_client.results import Evaluation, OutputSummary
from crucible_deploy.hostile import PROGRAMS
from crucible_deploy.hostile_judges import Judges
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import make_home

pytestmark = pytest.mark.root

BY_NAME = {program.name: program for program in PROGRAMS}


@pytest.fixture
def secret(layout):
    make_home(layout)
    key = secrets.token_hex(16)
    layout.client_file.write_text(f'address = "x"\napi_key = "{key}"\n')
    (layout.pki / "ca.key").write_text("-----BEGIN\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49\n")
    return key


@pytest.fixture
def executor():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield ProcessIdentity.of(process.pid)
        process.kill()


@pytest.fixture
def judges(layout, secret, executor, monkeypatch):
    monkeypatch.setattr("crucible_deploy.hostile_judges._GONE_SECONDS", 0.2)
    with Judges(layout, executor) as made:
        yield made


def evaluation(program, kept: int = 0) -> Evaluation:
    nothing = OutputSummary()
    return Evaluation(
        name="evaluations/x", tenant="t", creator="c", spec=program.spec(), state=State.SUCCEEDED, version=1, attempt=1,
        termination=Exited(0), limit_hits=(), create_time=None, start_time=None, end_time=None,
        stdout=OutputSummary(bytes_total=kept, bytes_kept=kept), stderr=nothing, usage=None, provenance=None, labels={},
        failed_attempts=(),
    )  # fmt: skip


def faults(judges, name: str, stdout: bytes = b"", kept: int = 0) -> str:
    program = BY_NAME[name]
    return "; ".join(judges.faults(program, evaluation(program, kept), stdout))


def test_there_are_ten_programs_of_different_names():
    assert len(BY_NAME) == len(PROGRAMS) == 10
    assert all(program.limits.wall_time <= timedelta(seconds=20) for program in PROGRAMS)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_harm_is_no_fault(judges, name):
    assert faults(judges, name, b"permission denied\n") == ""
    assert judges.shown(BY_NAME[name], evaluation(BY_NAME[name]))


def test_a_printed_secret_is_seen(judges, secret):
    canary = Path(judges.arguments(BY_NAME["reading secrets"])[0])
    assert "printed a secret" in faults(judges, "reading secrets", b"found: " + canary.read_bytes())
    assert "printed a secret" in faults(judges, "busy loop", b"found: " + secret.encode())


def test_a_changed_or_new_file_is_seen(judges):
    canary = Path(judges.arguments(BY_NAME["writing outside"])[0])
    with canary.open("ab") as stream:
        stream.write(b"owned")
    assert "a file on the host was changed" in faults(judges, "writing outside")


def test_a_new_file_beside_the_bait_is_seen(judges):
    Path(judges.arguments(BY_NAME["writing outside"])[0]).with_name("new").touch()
    assert "a file on the host was changed" in faults(judges, "writing outside")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_connection_is_seen(judges, kind):
    port = int(judges.arguments(BY_NAME["opening a connection"])[0])
    with socket.socket(socket.AF_INET, kind) as caller:
        caller.connect(("127.0.0.1", port))
        caller.send(b"x")
        assert "reached a listener" in faults(judges, "opening a connection")
    assert faults(judges, "opening a connection") == ""


def test_a_process_that_is_left_is_seen(layout, judges):
    layout.sandboxes.mkdir(parents=True)
    code = "import time; print(flush=True); time.sleep(60)"
    argv = [sys.executable, "-c", code, f"--root={layout.sandboxes}/gvisor/s1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as left:
        left.stdout.readline()  # only a process that runs is sure to show its arguments
        assert f"left on the host: process {left.pid}" in faults(judges, "leaving a daemon behind")
        left.kill()


def test_a_folder_or_cgroup_that_is_left_is_seen(layout, judges):
    (layout.sandboxes / "gvisor" / "s1").mkdir(parents=True)
    assert "folder" in faults(judges, "leaving a daemon behind")
    (layout.sandboxes / "gvisor" / "s1").rmdir()
    parent = next(path for path in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if path.is_dir())
    cgroup = parent / layout.cgroup / "s1"
    cgroup.mkdir(parents=True)
    try:
        assert "cgroup" in faults(judges, "leaving a daemon behind")
    finally:
        cgroup.rmdir()
        cgroup.parent.rmdir()


def test_a_killed_executor_is_seen(judges, executor):
    os.kill(executor.pid, 9)
    os.waitid(os.P_PID, executor.pid, os.WEXITED | os.WNOWAIT)
    assert "the executor was killed" in faults(judges, "killing its parent")


def test_too_much_output_is_seen(judges):
    assert "bytes of output kept" in faults(judges, "endless output", kept=(1 << 20) + 1)
