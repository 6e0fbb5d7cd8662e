"""The supervisor with real processes: small servers whose behaviour a test chooses."""

import asyncio
import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crucible_deploy import record
from crucible_deploy.child import Backoff, ChildError
from crucible_deploy.daemon import own_identity
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import make_home
from crucible_deploy.spec import ProcessSpec
from crucible_deploy.supervisor import Supervisor
from crucible_deploy.users import ROOT, Account

pytestmark = pytest.mark.root

NOBODY = Account("nobody", 65534, 65534)

READY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *arguments): pass
print("hello from", sys.argv[1], flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY
FAILS = "import sys; print('no such folder: /x', flush=True); sys.exit(3)"
NEVER_READY = "import time; time.sleep(60)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def process(name: str, code: str = READY, *, account: Account = NOBODY, stop_seconds: float = 5) -> ProcessSpec:
    port = free_port()
    command = ("/usr/bin/python3", "-I", "-c", code, name, str(port))
    return ProcessSpec(name, account, command, {"CRUCIBLE_X": "1"}, f"127.0.0.1:{port}", stop_seconds)


def supervisor(layout, *specs: ProcessSpec, **options) -> Supervisor:
    make_home(layout)
    options.setdefault("backoff", Backoff(first=0.05, most=0.2))
    return Supervisor(layout, specs, own=own_identity(), **options)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def look_at(pid: int) -> tuple[bytes, str, list[str]]:
    """Environment, working folder and open files of a process."""
    folder = Path(f"/proc/{pid}")
    files = [str(link.readlink()) for link in (folder / "fd").iterdir()]
    return (folder / "environ").read_bytes(), str((folder / "cwd").readlink()), files


async def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


async def test_processes_are_ready_inside_and_gone_after(layout):
    async with supervisor(layout, process("a"), process("b")) as running:
        identities = [child.identity for child in running.children]
        assert all(identity.alive for identity in identities)
        written = record.read(layout)
        assert written.ready
        assert list(written.processes.values()) == identities
        assert written.supervisor.pid == os.getpid()
    assert not any(identity.alive for identity in identities)
    assert record.read(layout) is None
    assert "hello from a" in layout.log_file("a").read_text()


async def test_an_unprivileged_process_has_no_capability_and_nothing_of_the_supervisor(layout, monkeypatch):
    monkeypatch.setenv("SECRET_OF_ROOT", "x")
    spec = process("a")
    held = os.open("/etc/shadow", os.O_RDONLY)  # root's, and must not be inherited
    try:
        async with supervisor(layout, spec) as running:
            pid = running.children[0].identity.pid
            environment, cwd, open_files = look_at(pid)
            seen = status(pid)
            assert seen["Uid"].split() == ["65534"] * 4
            assert seen["Gid"].split() == ["65534"] * 4
            assert seen["Groups"].strip() in ("", "65534")
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(seen[name], 16) == 0, name
            assert seen["NoNewPrivs"] == "1"
            assert seen["Umask"] == "0077"
            assert cwd == "/"
            assert os.getsid(pid) == pid
            assert b"SECRET_OF_ROOT" not in environment
            assert b"CRUCIBLE_X=1" in environment
            assert all(name.startswith(("/dev/null", "pipe:", "socket:")) for name in open_files), open_files
    finally:
        os.close(held)


async def test_a_process_that_dies_is_started_again(layout):
    async with supervisor(layout, process("a"), process("b")) as running:
        child, other = running.children
        first, untouched = child.identity, other.identity
        first.signal(signal.SIGKILL)
        await until(lambda: child.identity != first and child.identity is not None and child.identity.alive)
        assert other.identity == untouched
        assert record.read(layout).processes["a"] == child.identity
    assert child.restarts == 1
    assert "ended with signal 9; started again in 0.05 s" in layout.log_file("a").read_text()


async def test_a_full_disk_does_not_end_the_watch_over_a_process(layout, monkeypatch):
    """The record of the processes is written at each start."""
    async with supervisor(layout, process("a")) as running:
        (child,) = running.children
        for number in (1, 2):
            with monkeypatch.context() as full:
                full.setattr(record, "write", raising(OSError(errno.ENOSPC, "No space left on device")))
                before = child.identity
                before.signal(signal.SIGKILL)
                await until(lambda: child.identity not in (None, before) and child.identity.alive)  # noqa: B023
            assert child.restarts == number
        assert "No space left on device" in layout.log_file("a").read_text()


async def test_a_process_that_cannot_be_had_now_is_asked_for_again(layout, monkeypatch):
    async with supervisor(layout, process("a")) as running:
        (child,) = running.children
        before = child.identity
        with monkeypatch.context() as none_left:
            none_left.setattr(asyncio, "create_subprocess_exec", raising(OSError(errno.EAGAIN, "no process left")))
            before.signal(signal.SIGKILL)
            await until(lambda: child.restarts >= 2)
        await until(lambda: child.identity != before and child.identity.alive)


def raising(error):
    def fails(*_, **__):
        raise error

    return fails


ONCE = """
import os, sys
mark = os.path.join(os.environ["MARKS"], sys.argv[1])
if os.path.exists(mark):
    sys.exit(7)
open(mark, "w").close()
""" + READY.replace(".serve_forever()", ".handle_request()")  # ends after one request, and at once when started again


async def test_a_process_that_keeps_dying_is_started_less_and_less_often(layout, tmp_path):
    make_home(layout)
    layout.home.parent.chmod(0o1777)
    spec = dataclasses.replace(process("a", ONCE), environment={"MARKS": str(layout.home.parent)})
    said = []
    async with supervisor(layout, spec, say=lambda name, line: said.append(line)):
        await until(lambda: len(said) >= 6)
    waits = [line.rpartition(" in ")[2] for line in said if "started again" in line]
    assert waits[:4] == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]


async def test_one_that_fails_to_start_stops_the_others_and_its_last_words_are_told(layout):
    seen = {}
    running = supervisor(layout, process("a"), process("b", FAILS), process("c"))
    with pytest.raises(ChildError, match="b did not start: ended with exit code 3") as failure:
        async with running:
            seen["entered"] = True
    assert "no such folder: /x" in str(failure.value)
    assert not seen
    assert all(child.identity is None for child in running.children)
    assert record.read(layout) is None


async def test_one_that_is_never_ready_is_a_failure(layout):
    with pytest.raises(ChildError, match=r"not ready in 0\.5 s"):
        async with supervisor(layout, process("a", NEVER_READY), start_seconds=0.5):
            raise AssertionError("it was never ready")


async def test_one_that_ignores_sigterm_is_killed(layout):
    async with supervisor(layout, process("a", DEAF, stop_seconds=0.3)) as running:
        identity = running.children[0].identity
    assert not identity.alive


async def test_stop_ends_in_reverse_order(layout):
    code = READY.replace("http.server.HTTPServer", "import signal, time\n"
        "def end(*a): print('ended', time.monotonic(), flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nhttp.server.HTTPServer")  # fmt: skip
    async with supervisor(layout, process("a", code), process("b", code), process("c", code)):
        pass

    def ended(name: str) -> float:
        lines = layout.log_file(name).read_text().splitlines()
        return float(next(line for line in lines if line.startswith("ended")).split()[1])

    assert ended("c") < ended("b") < ended("a")


async def test_cancelling_while_starting_leaves_nothing(layout):
    running = supervisor(layout, process("a"), process("b", NEVER_READY))

    async def enter() -> None:
        async with running:
            raise AssertionError("b is never ready")

    task = asyncio.create_task(enter())
    await until(lambda: running.children[1].identity is not None)
    identities = [child.identity for child in running.children]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(identity.alive for identity in identities)


OUTER = """
import asyncio, sys
sys.path[:0] = {path!r}
from tests.deploy.test_supervisor import process, supervisor
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from pathlib import Path
layout = Layout(Paths(home=Path({home!r}), cache=Path("/nonexistent")))
async def main():
    async with supervisor(layout, process("a"), process("b")):
        print("up", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_nothing_outlives_a_supervisor_that_is_killed(layout):
    code = OUTER.format(path=[str(Path(__file__).parents[2])], home=str(layout.home))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout.readline() == "up\n"
        written = record.read(layout)
        assert ProcessIdentity.of(outer.pid) == written.supervisor
        outer.kill()
        outer.wait()
    assert len(written.processes) == 2
    assert all(identity.wait_gone(10) for identity in written.processes.values())


async def test_root_keeps_its_capabilities_where_the_spec_says_root(layout):
    async with supervisor(layout, process("a", account=ROOT)) as running:
        assert int(status(running.children[0].identity.pid)["CapEff"], 16) != 0


def test_a_second_supervisor_of_a_home_does_not_get_the_lock(layout):
    make_home(layout)
    held = record.lock(layout)
    assert held is not None
    assert record.lock(layout) is None
    os.close(held)
    again = record.lock(layout)
    assert again is not None
    os.close(again)
