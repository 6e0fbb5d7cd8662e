import asyncio
import json
import os
import platform
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.peers import compare, go_judge, inside, libraries, processes
from crucible_deploy.bench.peers.daemon import Docker
from crucible_deploy.bench.peers.model import Peer, PeerAbsentError, Ran
from crucible_deploy.paths import Paths

SEEN = {
    "uid": 65534, "gid": 65534, "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2",
    "release": "4.19.0-gvisor", "version": "#1 SMP", "log": "<6>[    0.0] Starting gVisor...\n", "interfaces": ["lo"],
    "processes": 2, "sees_host": False, "root_read_only": True, "root_writable": False,
    "memory_limit": "268435456", "pids_limit": "64", "rlimit_nproc": 10,
}  # fmt: skip


def quiet(_):
    pass


def answering(answer, *, name="peer", pause_s=0.0):
    """A peer whose runs are `answer(code)`."""

    @asynccontextmanager
    async def opened():
        async def run(code):
            return answer(code)

        yield run

    return Peer(name, opened, pause_s)


def hello(code):
    return Ran(0.01, b"hello\n" if "hello" in code else json.dumps(SEEN).encode())


def absent():
    @asynccontextmanager
    async def opened():
        raise PeerAbsentError("not installed: make bench-peers")
        yield

    return Peer("absent", opened)


async def test_peer_that_is_absent_is_a_line_with_the_reason_and_has_not_failed():
    missing, there = await compare.compare([absent(), answering(hello)], 2, 4, quiet)
    assert (missing.name, missing.reason, missing.failed) == ("absent", "not installed: make bench-peers", False)
    assert (there.reason, there.runs, there.median_ms) == ("", 2, pytest.approx(10.0))


async def test_peer_that_fails_half_way_is_a_line_that_has_failed_and_the_others_go_on():
    left = iter(range(4))

    def breaks(code):
        if next(left, None) is None:
            raise BenchError("it burnt")
        return hello(code)

    broken, there = await compare.compare([answering(breaks, name="broken"), answering(hello)], 9, 4, quiet)
    assert (broken.reason, broken.failed) == ("it burnt", True)
    assert there.runs == 9


async def test_output_that_does_not_come_back_is_a_failure():
    (line,) = await compare.compare([answering(lambda _: Ran(0.01, b"something else"))], 1, 4, quiet)
    assert line.failed
    assert "did not come back" in line.reason


async def test_warm_starts_are_counted_where_a_peer_is_left_time_for_them():
    peer = answering(lambda code: Ran(0.01, hello(code).stdout, warm=True), pause_s=0.001)
    (line,) = await compare.compare([peer], 3, 4, quiet)
    assert "warm: 3 and 4" in line.note


def test_what_a_program_sees_is_told_in_words():
    told = inside.describe(json.dumps(SEEN).encode())
    assert told == {
        "kernel": "gVisor (4.19.0-gvisor)",
        "uid": "65534",
        "capabilities": "none",
        "no_new_privs": "yes",
        "seccomp": "filter",
        "network": "lo",
        "host processes": "hidden (2 seen)",
        "root": "read-only",
        "memory limit": "256 MiB",
        "process limit": "64",
    }


def test_weak_isolation_is_told_as_such():
    host = {"release": platform.release(), "version": os.uname().version, "log": ""}
    open_to_all = {"CapEff": "000001ffffffffff", "CapBnd": "000001ffffffffff", "NoNewPrivs": "0", "Seccomp": "0"}
    limits = {"memory_limit": "9223372036854771712", "pids_limit": "max"}
    weak = (
        SEEN
        | host
        | open_to_all
        | limits
        | {"uid": 0, "sees_host": True, "root_read_only": False, "root_writable": True}
    )
    told = inside.describe(json.dumps(weak | {"interfaces": ["lo", "eth0"]}).encode())
    assert told["kernel"] == "the host's"
    assert told["capabilities"] == "all"
    assert told["seccomp"] == "none"
    assert told["network"] == "lo, eth0"
    assert told["host processes"] == "visible"
    assert told["root"] == "writable"
    assert told["memory limit"] == told["process limit"] == "none"


def test_what_a_kernel_does_not_show_is_said_not_to_be_shown():
    bare = {name: value for name, value in SEEN.items() if name not in ("CapEff", "NoNewPrivs", "Seccomp")}
    told = inside.describe(json.dumps(bare | {"interfaces": None, "memory_limit": "", "pids_limit": ""}).encode())
    assert told["capabilities"] == told["no_new_privs"] == told["seccomp"] == told["network"] == "not shown"
    assert told["memory limit"] == "not shown"
    assert told["process limit"] == "10 (rlimit)"


@pytest.mark.parametrize("said", [b"", b"Traceback\n", b"hello\n"])
def test_probe_that_does_not_answer_is_a_failure(said):
    with pytest.raises(BenchError, match="did not answer"):
        inside.describe(said)


def test_probe_does_not_hold_its_token_in_one_piece_or_it_would_find_itself():
    assert "0123456789abcdef" not in inside.code("0123456789abcdef")


async def test_hosts_own_python_is_measured_and_seen_to_be_behind_nothing():
    (line,) = await compare.compare([processes.native()], 2, 4, quiet)
    assert line.reason == ""
    assert line.median_ms > 0
    assert line.per_second > 0
    assert line.inside["kernel"] == "the host's"
    assert line.inside["host processes"] == "visible"
    assert line.inside["uid"] == str(os.getuid())


async def test_missing_programs_are_absent_with_what_mends_it(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    docker = Docker("unix:///nowhere", "image", tmp_path)
    peers = [
        processes.bubblewrap(tmp_path),
        processes.docker_run("docker run", docker.address, docker.image),
        libraries.peer(libraries.LIBRARIES[0], Paths(home=tmp_path, cache=tmp_path), docker),
        go_judge.peer(Path("/nonexistent/go-judge")),
    ]
    lines = await compare.compare(peers, 1, 4, quiet)
    assert not any(line.failed for line in lines)
    assert [("make bench-peers" in line.reason) for line in lines] == [True, True, True, False]
    assert "go-judge" in lines[-1].reason


DRIVER = """
import sys
sys.path.insert(0, {folder!r})
from driving import drive

def run(code):
    print("a library's own words")
    if "fails" in code:
        raise RuntimeError("it burnt")
    return code.upper().encode()

drive(run)
"""


@pytest.fixture
def library(tmp_path):
    """A library whose driver gives each program back in capitals."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(folder=str(Path(libraries.__file__).parent)))
    made = libraries.Library("loud", "1", (), str(driver))
    paths = Paths(home=tmp_path, cache=tmp_path)
    made.python(paths).parent.mkdir(parents=True)
    made.python(paths).symlink_to(sys.executable)
    return libraries.peer(made, paths, Docker("unix:///nowhere", "image", tmp_path))


async def test_library_in_its_own_process_answers_many_at_once_each_its_own(library):
    async with library.open() as run:
        answers = await asyncio.gather(*(run(f"code {number}") for number in range(8)))
    assert [one.stdout for one in answers] == [f"CODE {number}".encode() for number in range(8)]


async def test_failure_of_a_library_is_told_and_does_not_end_it(library):
    async with library.open() as run:
        with pytest.raises(BenchError, match="RuntimeError: it burnt"):
            await run("fails")
        assert (await run("goes on")).stdout == b"GOES ON"


GO_JUDGE = """#!/usr/bin/env python3
import http.server, json, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, said):
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"buildVersion": "v1"})

    def do_POST(self):
        (command,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["cmd"]
        code = command["copyIn"]["main.py"]["content"]
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        status = "Accepted" if done.returncode == 0 else "Nonzero Exit Status"
        self.answer([{"status": status, "files": {"stdout": done.stdout, "stderr": done.stderr}}])

    def log_message(self, *_):
        pass

host, _, port = sys.argv[sys.argv.index("-http-addr") + 1].partition(":")
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def server(tmp_path):
    """A program that answers as go-judge's pages say it does."""
    file = tmp_path / "go-judge"
    file.write_text(GO_JUDGE.replace("/usr/bin/env python3", sys.executable))
    file.chmod(0o755)
    return go_judge.peer(file)


async def test_server_of_a_given_binary_runs_programs_and_is_gone_afterwards(server):
    async with server.open() as run:
        assert (await run("print('hello')")).stdout == b"hello\n"
        with pytest.raises(BenchError, match="Nonzero"):
            await run("raise SystemExit(1)")
    (line,) = await compare.compare([server], 1, 4, quiet)
    assert line.reason == ""


async def test_binary_that_is_no_server_is_absent(tmp_path):
    file = tmp_path / "go-judge"
    file.write_text("#!/bin/sh\nexit 1\n")
    file.chmod(0o755)
    (line,) = await compare.compare([go_judge.peer(file)], 1, 4, quiet)
    assert (line.failed, line.reason) == (False, "go-judge does not start here")
