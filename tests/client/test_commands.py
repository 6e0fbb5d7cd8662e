"""The other commands of `crucible`, against a server."""

import asyncio
import json
import os
import pty
import stat
import termios
import tomllib
from importlib.metadata import EntryPoint

import click
import pytest
from click.testing import CliRunner

from crucible_client.cli import app
from tests.client.gateway_servicer import KEY, script

pytestmark = pytest.mark.slow


@pytest.fixture
async def name(crucible, tmp_path) -> str:
    """An evaluation that ended."""
    path = tmp_path / "program.py"
    path.write_text(script(out=[(1, b"out\xff\n"), (2, b"err")], end={"exited": {"code": 3}}))
    ran = await crucible("submit", str(path), "--label", "a=b")
    assert (ran.code, ran.err) == (0, b"")
    return ran.lines[0]


async def test_submit_prints_the_name_and_get_and_list_show_it(crucible, name):
    assert (await crucible("watch", name)).code == 0
    got = json.loads((await crucible("get", name, "--json")).out)
    assert (got["name"], got["termination"]["code"], got["labels"]) == (name, 3, {"a": "b"})
    plain = (await crucible("get", name)).lines
    assert [f"name\t{name}", "ended how\texited with code 3"] == [plain[0], plain[2]]
    assert (await crucible("get", name.removeprefix("evaluations/"))).code == 0
    listed = await crucible("list", "--label", "a=b")
    assert listed.lines[0].split("\t")[:3] == [name, "FAILED", "python"]
    assert (await crucible("list", "--state", "QUEUED")).out == b""
    assert json.loads((await crucible("list", "--json")).out)["state"] == "FAILED"


async def test_program_that_is_too_large_is_told_with_the_limit(crucible, tmp_path, config):
    path = tmp_path / "program.py"
    path.write_bytes(b"#" * (5 << 20))
    ran = await crucible("submit", str(path))
    assert ran.code == 1
    assert ran.err.startswith(b"crucible: the message has 52")
    assert ran.err.endswith(f", and {config.address} takes at most {4 << 20}\n".encode())


async def test_watch_prints_one_line_per_event(crucible, name):
    lines = (await crucible("watch", name)).lines
    assert [line.split("\t")[3] for line in lines] == ["STATE"] * 3 + ["OUTPUT"] * 2 + ["STATE"]
    assert lines[-1].endswith("FAILED: exited with code 3")
    events = [json.loads(line) for line in (await crucible("watch", "--json", "--after", "30", name)).lines]
    assert [event["kind"] for event in events] == ["OUTPUT", "OUTPUT", "STATE"]
    assert events[0]["data_base64"] == "b3V0/wo="


async def test_logs_are_exact_bytes(crucible, name):
    await crucible("watch", name)
    assert (await crucible("logs", name)).out == b"out\xff\n"
    assert (await crucible("logs", "--stderr", name)).out == b"err"
    assert (await crucible("logs", "--follow", name)).out == b"out\xff\n"


async def test_cancel_waits_until_it_is_gone(crucible, tmp_path, gateway):
    path = tmp_path / "program.py"
    path.write_text(script(hang=True))
    name = (await crucible("submit", str(path))).lines[0]
    ran = await crucible("cancel", name, "--reason", "enough")
    assert (ran.code, ran.out.decode()) == (0, f"{name}\tCANCELLED\tcancelled (asked)\n")


async def test_delete_says_what_is_left(crucible, tmp_path, gateway):
    path = tmp_path / "program.py"
    path.write_text(script(hang=True))
    name = (await crucible("submit", str(path))).lines[0]
    await crucible("cancel", name)
    ran = await crucible("delete", name, "--reason", "a secret was printed", "--json")
    left = json.loads(ran.out)
    assert (ran.code, left["name"], left["state"]) == (0, name, "CANCELLED")
    assert (left["reason"], left["stdout_sha256"]) == ("a secret was printed", "0102")
    ran = await crucible("delete", name)
    assert (ran.code, ran.out.decode().split("\t")[:2]) == (0, [name, "deleted"])


async def test_status_fails_when_a_process_does_not_serve(crucible, gateway):
    assert (await crucible("status")).code == 0
    gateway.serving = False
    ran = await crucible("status")
    assert (ran.code, b"\x1b" in ran.out) == (1, False)
    assert "NOT SERVING" in ran.lines[1]
    assert json.loads((await crucible("status", "--json")).out)["queue"] == {"queued": 1, "running": 2, "finished": 3}


async def test_key_create_list_and_revoke(crucible, tmp_path, config):
    made = await crucible("key", "create", "--tenant", "team")
    assert (made.out, b"key0" in made.err) == (b"crucible_secret-of-key0\n", True)
    out = tmp_path / "client.toml"
    written = await crucible("key", "create", "--tenant", "team", "--admin", "--out", str(out))
    assert (written.code, written.out) == (0, b"")
    assert b"secret" not in written.err
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert tomllib.loads(out.read_text()) == {
        "address": config.address,
        "api_key": "crucible_secret-of-key1",
        "ca_file": str(config.ca_file),
    }
    assert (await crucible("key", "revoke", "key0")).code == 0
    listed = (await crucible("key", "list")).lines
    assert [line.split("\t")[:3] for line in listed] == [["key0", "team", "USER"], ["key1", "team", "ADMIN"]]
    assert [line.split("\t")[4] == "-" for line in listed] == [False, True]


async def test_key_create_never_overwrites_and_makes_no_key_then(crucible, tmp_path, gateway):
    out = tmp_path / "client.toml"
    out.write_text("mine")
    ran = await crucible("key", "create", "--tenant", "team", "--out", str(out))
    assert (ran.code, len(ran.err.splitlines()), out.read_text()) == (1, 1, "mine")
    assert not gateway.keys


@pytest.mark.parametrize(("command", "code"), [("run -", 125), ("submit -", 1), ("status", 1), ("list", 1)])
async def test_dead_server_is_one_line(crucible, command, code):
    crucible.env["CRUCIBLE_ADDRESS"] = "127.0.0.1:1"
    ran = await crucible(*command.split(), stdin=b"1")
    assert (ran.code, ran.out) == (code, b"")
    assert ran.err == b"crucible: 127.0.0.1:1 cannot be reached now; try again in a moment\n"


@pytest.mark.parametrize("command", ["run -", "status", "key list"])
def test_missing_settings_are_one_line_that_says_what_to_do(tmp_path, command):
    environ = {"CRUCIBLE_HOME": str(tmp_path), "CRUCIBLE_API_KEY": KEY, "CRUCIBLE_ADDRESS": ""}
    ran = CliRunner(env=environ).invoke(app.app, command.split(), input="1")
    assert (ran.exit_code, len(ran.stderr.splitlines())) == (2, 1)
    assert "no CRUCIBLE_ADDRESS" in ran.stderr
    assert "crucible up" in ran.stderr
    assert KEY not in ran.stderr


async def on_a_terminal(crucible, *args: str) -> str:
    """What a command writes to a terminal of 120 columns."""
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    child = await crucible.start(*args, stdout=terminal, stderr=terminal, stdin=asyncio.subprocess.DEVNULL)
    os.close(terminal)
    said = await asyncio.wait_for(asyncio.to_thread(read_all, master), 30)
    os.close(master)
    await child.wait()
    return said.decode()


def read_all(descriptor: int) -> bytes:
    said = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # EIO: the other side of the terminal is closed
            return said
        if not piece:
            return said
        said += piece


async def test_tables_and_a_progress_bar_on_a_terminal(crucible, name, tmp_path):
    crucible.env["TERM"] = "xterm"
    await crucible("watch", name)
    table = await on_a_terminal(crucible, "list")
    assert all(word in table for word in ("NAME", "ENDED HOW", name, "exited with code 3"))
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"task_id": "HumanEval/0", "completion": "    pass\n"}))
    bar = await on_a_terminal(crucible, "bench", "humaneval", "--samples", str(samples))
    assert all(word in bar for word in ("HumanEval", "1/1", "pass@1", "0.0000"))


async def test_unreadable_authority_is_one_line(crucible):
    crucible.env["CRUCIBLE_CA_FILE"] = "/no/such/file"
    ran = await crucible("status")
    assert (ran.code, ran.err) == (2, b"crucible: cannot read the PEM file /no/such/file: No such file or directory\n")


async def test_another_authoritys_server_is_refused(crucible, tmp_path):
    from crucible_rpc import pki

    other = tmp_path / "other.crt"
    other.write_bytes(pki.make_ca().cert_pem)
    crucible.env["CRUCIBLE_CA_FILE"] = str(other)
    ran = await crucible("status")
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)


async def test_unknown_evaluation_and_refused_key_are_one_line(crucible):
    ran = await crucible("get", "nope")
    assert (ran.code, ran.err) == (1, b"crucible: there is no evaluation evaluations/nope\n")
    crucible.env["CRUCIBLE_API_KEY"] = "crucible_wrong"
    ran = await crucible("get", "nope")
    assert (ran.code, ran.err) == (1, b"crucible: this API key is not known\n")


async def test_reader_that_leaves_early_is_no_traceback(crucible, name):
    child = await crucible.start("watch", name)
    await asyncio.wait_for(child.stdout.readline(), 20)
    child.stdout._transport.close()
    _, err = await asyncio.wait_for(child.communicate(), 20)
    assert b"Traceback" not in err


def found(**commands: str):
    return lambda: {name: EntryPoint(name, value, app.ENTRY_POINT_GROUP) for name, value in commands.items()}


@click.command()
def hello() -> None:
    click.echo("hello from elsewhere")


def test_commands_of_other_distributions_are_found(monkeypatch):
    monkeypatch.setattr(app, "_entry_points", found(hello=f"{__name__}:hello", run="nothing:here"))
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(hello=hello))
    assert CliRunner().invoke(app.app, ["hello"]).output == "hello from elsewhere\n"
    assert "Runs one program" in CliRunner().invoke(app.app, ["run", "--help"]).output


@pytest.mark.parametrize("value", ["no_such_module:up", "json:no_such_name", "json:dumps"])
def test_broken_command_is_one_line_and_spares_the_others(monkeypatch, value):
    monkeypatch.setattr(app, "_entry_points", found(up=value))
    ran = CliRunner().invoke(app.app, ["up", "--detach", "x"])
    assert ran.exit_code == 1
    assert (len(ran.stderr.splitlines()), "'up'" in ran.stderr, "reinstall" in ran.stderr) == (1, True, True)
    listed = CliRunner().invoke(app.app, ["--help"])
    assert (listed.exit_code, "Cannot be loaded" in listed.output, "humaneval" in listed.output) == (0, True, False)


def test_every_command_has_help():
    for name in app._COMMANDS:
        assert CliRunner().invoke(app.app, [name, "--help"]).exit_code == 0
