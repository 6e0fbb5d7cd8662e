import http.server
import json
import socket
import threading

import pytest
from click.testing import CliRunner

from crucible_deploy import checks
from crucible_deploy.checks import Check
from crucible_deploy.doctor import doctor
from crucible_deploy.images import ImageStore
from crucible_deploy.rootfs import PYTHON

V1 = """\
30 23 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 23 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
32 23 0:28 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""


@pytest.mark.parametrize(("value", "status"), [("0.0", "ok"), ("1.0", "fail")])
def test_an_engine_that_failed_again_and_again_is_named(value, status):
    text = f'crucible_executor_engine_breaker_open{{engine="gvisor"}} {value}\n'

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = checks.engines(f"127.0.0.1:{server.server_port}")
        thread.join()
    assert found.status == status
    assert ("gvisor" in found.found) == (status == "fail")


def test_an_executor_that_does_not_tell_its_metrics_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert checks.engines(address).status == "fail"


@pytest.fixture
def environment(home, monkeypatch):
    """A home and a cache that hold nothing yet."""
    monkeypatch.setenv("CRUCIBLE_HOME", str(home))
    monkeypatch.setenv("CRUCIBLE_CACHE", str(home.parent / "cache"))


@pytest.fixture
def mountinfo(tmp_path):
    def write(text):
        (tmp_path / "mountinfo").write_text(text)
        return tmp_path / "mountinfo"

    return write


def test_on_a_machine_without_set_up_it_says_how_to_mend_it_and_fails(environment, home):
    done = CliRunner().invoke(doctor, ["--json"])
    assert done.exit_code == 1
    told = json.loads(done.output)
    assert told["fit"] is False
    found = {check["name"]: check for check in told["checks"]}
    for name in ("uv", "runsc", "init", "image", "sandbox"):
        assert found[name]["status"] == "todo"
        assert found[name]["mend"]
    assert not home.exists()
    assert not (home.parent / "cache").exists()


def test_the_plain_report_has_a_line_for_each_check_and_one_for_its_mending(environment):
    done = CliRunner().invoke(doctor, [])
    assert done.exit_code == 1
    assert "todo  image      no python image\n                 to mend it: make setup" in done.output
    assert "This machine cannot run Crucible yet." in done.output


def test_a_setting_that_makes_no_sense_is_a_usage_error(monkeypatch):
    monkeypatch.setenv("CRUCIBLE_HOME", "relative")
    done = CliRunner().invoke(doctor, [])
    assert done.exit_code == 2
    assert "CRUCIBLE_HOME must be an absolute path" in done.output


def test_cgroups_of_version_1_and_of_a_hybrid_machine_are_found(mountinfo):
    hybrid = "33 23 0:29 / /nowhere/unified rw - cgroup2 cgroup2 rw\n"
    assert checks.cgroups(mountinfo(V1)).status == "ok"
    assert checks.cgroups(mountinfo(V1 + hybrid)).found.startswith("version 1")


def test_cgroups_of_version_2_are_found(mountinfo, tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    found = checks.cgroups(mountinfo(f"29 22 0:25 / {tmp_path} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"))
    assert (found.status, found.found) == ("ok", "version 2: cpu, memory, pids")


@pytest.mark.parametrize(
    ("text", "missing"),
    [("", "version 2 lacks cpu, memory, pids"), (V1.replace(",memory", ",freezer"), "version 1 lacks memory")],
)
def test_missing_controllers_are_named(mountinfo, text, missing):
    found = checks.cgroups(mountinfo(text))
    assert (found.status, found.found) == ("fail", missing)
    assert found.mend


def test_a_port_in_use_by_another_program_fails_and_by_our_own_stack_does_not(layout):
    port = layout.ports()[0]
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", port))
        except OSError:
            pass  # somebody else has it: just as well
        else:
            other.listen()
        found = checks.ports(layout, running=lambda _: False)
        assert found.status == "fail"
        assert str(port) in found.found
        assert checks.ports(layout, running=lambda _: True).status == "ok"


def test_a_home_of_somebody_else_fails(layout):
    assert checks.home(layout).status == "ok"
    layout.home.mkdir()
    assert checks.home(layout).status == "ok"
    (layout.home / "letters").touch()
    assert checks.home(layout).status == "fail"


@pytest.mark.root
def test_an_image_with_a_changed_byte_fails(layout):
    def build(recipe, root, log):
        root.mkdir()
        (root / "file").write_bytes(b"one")
        return {"python": "3.11.2", "packages": {}}

    store = ImageStore(layout.paths.images)
    manifest = store.ensure(PYTHON, build)
    assert checks.image_check(layout).status == "ok"
    (store.rootfs(manifest) / "file").write_bytes(b"two")
    assert checks.image_check(layout).status == "fail"


def test_only_a_machine_without_any_fault_is_fit():
    good = Check("a", "ok", "there")
    assert checks.is_fit([good])
    assert not checks.is_fit([good, Check("b", "todo", "not there", "make setup")])
    assert not checks.is_fit([good, Check("b", "fail", "broken", "mend it")])


@pytest.fixture
def dockerd(tmp_path):
    """Something that answers one request at a Unix socket."""
    threads = []

    def listen(content):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "docker.sock"))
        listener.listen()

        def serve():
            with listener, listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode())

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return tmp_path / "docker.sock"

    yield listen
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            '{"ServerVersion": "20.10", "Runtimes": {"runc": {}, "runsc": {}}}',
            "version 20.10, for docker, docker-gvisor",
        ),
        ('{"ServerVersion": "20.10", "Runtimes": {"runc": {}}}', "docker-gvisor needs a runtime named runsc"),
        ("[]", "does not answer"),
        ("rubbish", "does not answer"),
    ],
)
def test_docker_says_which_engines_it_adds(dockerd, said, found):
    check = checks.docker(dockerd(said))
    assert check.status == "ok"
    assert found in check.found


def test_a_machine_without_docker_is_fit_and_is_told_what_it_lacks(tmp_path):
    check = checks.docker(tmp_path / "docker.sock")
    assert check.status == "ok"
    assert "docker and docker-gvisor are not offered" in check.found
