"""Who the processes are and what they cannot reach, read from /proc and tried as those users."""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from tests.system.local import python

UNPRIVILEGED = ("gateway", "storage", "monitor", "worker")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_every_process_but_the_executor_is_its_own_user_without_any_capability(stack):
    seen = {name: status(process.pid) for name, process in stack.processes().items()}
    assert set(seen) == {*UNPRIVILEGED, "executor"}
    users = {name: set(one["Uid"].split()) for name, one in seen.items()}
    assert users["executor"] == {"0"}
    assert all(len(ids) == 1 for ids in users.values())
    assert len(set.union(*users.values())) == 5
    for name in UNPRIVILEGED:
        assert users[name] == {str(pwd.getpwnam(f"crucible-{name}").pw_uid)}
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(seen[name][kind], 16) == 0, (name, kind)
        assert seen[name]["NoNewPrivs"] == "1"
        assert set(seen[name]["Groups"].split()) <= users[name]


def test_every_process_but_the_executor_runs_on_uvloop(stack):
    loaded = {name: "uvloop" in Path(f"/proc/{one.pid}/maps").read_text() for name, one in stack.processes().items()}
    assert loaded == {**dict.fromkeys(UNPRIVILEGED, True), "executor": False}


def readers_of(executor: int) -> list[int]:
    children = Path(f"/proc/{executor}/task/{executor}/children").read_text().split()
    return [int(pid) for pid in children if b"tracing.reader" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_reader_of_traces_is_its_own_user_without_any_capability(stack, client):
    await client.run(python("print(1)"))
    account = pwd.getpwnam("crucible-trace")
    (reader,) = readers_of(stack.processes()["executor"].pid)
    seen = status(reader)
    assert set(seen["Uid"].split()) == {str(account.pw_uid)}
    assert set(seen["Gid"].split()) == {str(account.pw_gid)}
    assert {int(seen[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert seen["NoNewPrivs"] == "1"


def test_no_process_runs_from_the_checkout_or_holds_a_file_of_another(stack):
    checkout = str(Path(__file__).parents[2])
    for name, process in stack.processes().items():
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert checkout not in maps
        assert str(stack.layout.environment(name)) in maps
        for other in ("storage", "executor", "gateway", "monitor", "worker"):
            if other != name:
                assert str(stack.layout.environment(other)) not in maps
                assert str(stack.layout.state(other)) not in maps


def try_as(user: str, *command: str) -> subprocess.CompletedProcess:
    """Runs a command as one of the services, with what it has and nothing more."""
    account = pwd.getpwnam(user)
    wrapper = ["setpriv", "--reuid", str(account.pw_uid), "--regid", str(account.pw_gid), "--clear-groups"]
    wrapper += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs", "--"]
    return subprocess.run([*wrapper, *command], capture_output=True, text=True, cwd="/", check=False)


TRY = """
import os, socket, stat, sys
for path in sys.argv[1:]:
    try:
        if os.path.isdir(path):
            os.listdir(path)
        elif stat.S_ISSOCK(os.stat(path).st_mode):
            socket.socket(socket.AF_UNIX).connect(path)
        else:
            os.open(path, os.O_RDONLY)
        print(path)
    except (PermissionError, FileNotFoundError):
        pass
"""


def forbidden(stack, name: str) -> list[str]:
    """What the service must not be able to open, all of which is there."""
    layout = stack.layout
    paths = [layout.pki / "ca.key", layout.client_file, layout.log, layout.run, layout.sandboxes]
    paths += [layout.log_file(name), *layout.sandboxes.rglob("*"), Path("/etc/shadow")]
    paths += [layout.state("executor"), *layout.state("executor").rglob("*")]
    for other in ("storage", "executor", "gateway", "monitor", "worker"):
        if other != name:
            paths += [layout.state(other), *layout.state(other).rglob("*")]
            paths += [layout.pki / other, *(layout.pki / other).rglob("*")]
    return [str(path) for path in paths if os.path.lexists(path)]


@pytest.mark.parametrize("name", UNPRIVILEGED)
async def test_a_service_cannot_open_what_is_not_its_own(stack, client, name, tmp_path):
    # While a sandbox lives, so that runsc's state is there to be tried.
    running = await client.submit(python("print('up', flush=True)\nimport time; time.sleep(30)"))
    try:
        async for event in client.watch(running.name):
            if type(event).__name__ == "OutputChunk":
                break
        paths = forbidden(stack, name)
        assert any("gvisor/s" in path for path in paths), "runsc's state was not there to be tried"
        assert len(paths) > 20
        done = try_as(f"crucible-{name}", "/usr/bin/python3", "-I", "-c", TRY, *paths)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        own = str(stack.layout.pki / name / "tls.key")
        assert try_as(f"crucible-{name}", "/usr/bin/python3", "-I", "-c", TRY, own).stdout == f"{own}\n"
    finally:
        await client.cancel(running.name)
        await client.wait(running.name)


@pytest.mark.parametrize("name", UNPRIVILEGED)
def test_a_service_cannot_reach_a_docker_socket(name):
    """A socket as dockerd makes it, root:docker 0660, and the machine's own when it is there."""
    import grp
    import socket

    path = Path("/run/crucible-test-docker.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        try:
            server.listen()
            path.chmod(0o660)
            groups = {group.gr_name: group.gr_gid for group in grp.getgrall()}
            os.chown(path, 0, groups.get("docker", 0))
            for candidate in (path, Path("/run/docker.sock"), Path("/var/run/docker.sock")):
                done = try_as(f"crucible-{name}", "/usr/bin/python3", "-I", "-c", TRY, str(candidate))
                assert (done.returncode, done.stdout) == (0, ""), done.stderr
        finally:
            path.unlink()


@pytest.mark.parametrize("name", UNPRIVILEGED)
def test_a_service_cannot_change_what_it_runs_from(stack, name):
    script = "for path in sys.argv[1:]:\n    if os.access(path, os.W_OK): print(path)"
    layout = stack.layout
    paths = [layout.home, layout.envs, layout.pki, *layout.envs.iterdir(), *layout.environment(name).rglob("*.py")]
    code = f"import os, sys\n{script}"
    done = try_as(f"crucible-{name}", "/usr/bin/python3", "-I", "-c", code, *map(str, paths[:2000]))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
