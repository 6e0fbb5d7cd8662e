"""The demonstrations: what a program sees beside what the host sees, over real sandboxes. As root."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from crucible_executor.model import Stream
from crucible_executor.verify import demonstrate
from crucible_executor.verify.demonstrate import Look, Row
from tests.attacks.suite_runs import ROOT, command, leftovers


def shown(environment, *arguments):
    argv = command("--demonstrate", *arguments)
    with subprocess.Popen(
        argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as looking:
        out, err = looking.communicate(timeout=100)
    assert looking.returncode == 0, err
    assert leftovers(looking.pid) == []
    return out


@pytest.fixture(scope="module", params=["gvisor", "docker"])
def seen(request, environment):
    made = json.loads(shown(environment, "--json", "--engine", request.param))
    assert made["engine"] == request.param
    return {(look, row["what"]): row for look, rows in made["looks"].items() for row in rows}


@pytest.mark.root
def test_both_sides_of_each_demonstration_are_there(seen):
    assert {look for look, _ in seen} == {"processes", "network", "limits", "read-only root", "capabilities"}
    assert all(row["program"] or row["host"] for row in seen.values())


@pytest.mark.root
def test_program_sees_itself_and_the_init_and_the_host_sees_that_others_are_there(seen):
    row = seen["processes", "processes"]
    assert row["program"].startswith("1 ")
    assert row["program"].count(",") == 1
    assert row["host"] != row["program"]
    assert " do not" in seen["processes", "itself"]["host"]


@pytest.mark.root
def test_call_to_the_host_fails_and_nothing_is_heard(seen):
    row = seen["network", "a call to the host"]
    assert "connected" not in row["program"]
    assert row["host"] == "nothing came to the listener"


@pytest.mark.root
def test_limits_refuse_and_the_host_says_which_they_are(seen):
    assert seen["limits", "processes"]["program"] == "31 children, then refused"
    assert "limit 32" in seen["limits", "processes"]["host"]
    assert "then full" in seen["limits", "disk"]["program"]
    assert "MiB allowed" in seen["limits", "memory"]["host"]


@pytest.mark.root
def test_root_is_read_only_and_the_image_has_no_new_file(seen):
    assert seen["read-only root", "a file in /etc"]["program"] == "Read-only file system"
    assert seen["read-only root", "a file in /workspace"]["program"] == "written"
    assert {row["host"] for (look, what), row in seen.items() if look == "read-only root" and "file" in what} == {
        "the image has no such file"
    }


@pytest.mark.root
def test_privileges_are_none_on_both_sides(seen):
    row = seen["capabilities", "privileges"]
    assert "Uid 65534, CapEff 0000000000000000" in row["program"]
    assert "Uid 65534, CapEff 0000000000000000, NoNewPrivs 1, Seccomp 2" in row["host"]


@pytest.mark.root
def test_table_is_for_people(environment):
    out = shown(environment)
    assert "what a program sees" in out
    assert all(line.isprintable() and len(line) <= 120 for line in out.splitlines())


@pytest.mark.root
def test_demonstrations_are_not_mixed_with_verdicts(environment):
    argv = command("--demonstrate", "--controls")
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "judges nothing" in done.stderr


@pytest.mark.parametrize("said", [b"", b"no JSON\n", b"[1]\n", b'{"a": "never ended', b"\xff\n"])
def test_program_that_says_nothing_that_can_be_read_is_shown_as_that(said):
    taken = demonstrate._Said()
    taken.output(Stream.STDOUT, said)
    assert taken.told() == {}
    running = SimpleNamespace(done=lambda: False)
    assert demonstrate._rows({}, {"b": "c"}, running) == (Row("the program", "nothing in time", ""), Row("b", "", "c"))


def test_what_a_program_says_cannot_speak_to_the_terminal():
    taken = demonstrate._Said()
    taken.output(Stream.STDERR, b"not looked at\n")
    taken.output(Stream.STDOUT, json.dumps({"k\x1b[2J": "v\n\u202e" + "y" * 9000}).encode() + b"\n")
    (key, value) = next(iter(taken.told().items()))
    assert (key, value[:3]) == ("k?[2J", "v??")
    table = demonstrate.table("gvisor", [Look("look", (Row(key, value, ""),))])
    assert "\x1b" not in table
    assert len(value) <= 400
