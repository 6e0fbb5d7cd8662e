import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

HEAD = """
import asyncio, errno, logging
from crucible_rpc import process
from crucible_rpc.errors import StartError
from crucible_rpc.settings import SettingsError
"""


def script(body):
    lines = HEAD + "async def main():\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return [sys.executable, "-c", f"{lines}\nprocess.run(main, 'storage')"]


def run(body, **environ):
    return subprocess.run(
        script(body), env={"PATH": os.environ["PATH"], **environ}, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise SettingsError('X_LISTEN is not set')", 2, "crucible-storage: X_LISTEN is not set\n"),
        ("raise StartError('port in use')", 1, "crucible-storage: port in use\n"),
        (
            "raise OSError(errno.EROFS, 'Read-only file system', '/s/db')",
            1,
            "crucible-storage: /s/db: Read-only file system\n",
        ),
        ("raise OSError(errno.ENOSPC, 'No space left on device')", 1, "crucible-storage: No space left on device\n"),
        ("open('/dev/full/x', 'w')", 1, "crucible-storage: /dev/full/x: Not a directory\n"),
        ("raise StartError('two\\nlines')", 1, "crucible-storage: two\\nlines\n"),
        ("pass", 0, ""),
    ],
)
def test_an_end_is_an_exit_code_and_one_clear_line(body, code, line):
    done = run(body)
    assert (done.returncode, done.stderr, done.stdout) == (code, line, "")


def test_a_taken_port_ends_a_service_with_one_line_only(keys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        tls = keys.server("storage")
        done = run(
            f"""
            from pathlib import Path
            from crucible_rpc.interceptors import PeerPermissions
            from crucible_rpc.server import Server
            from crucible_rpc.tls import ServerTls
            tls = ServerTls(Path({str(tls.cert)!r}), Path({str(tls.key)!r}), Path({str(tls.client_ca)!r}))
            await Server("storage", {listen!r}, tls, authentication=PeerPermissions({{}})).run()
            """
        )
    text = f"crucible-storage: storage cannot listen on {listen}: Address already in use; stop what uses it"
    assert done.returncode == 1
    assert done.stderr == f"{text} or set another address\n"


def test_anything_else_is_logged_with_its_traceback():
    done = run("raise KeyError('x')")
    assert done.returncode == 1
    record = json.loads(done.stderr)
    assert record["level"] == "ERROR"
    assert "KeyError: 'x'" in record["exception"]


def test_the_log_level_comes_from_the_environment():
    body = "logging.getLogger('a').debug('deep')"
    assert "deep" not in run(body).stderr
    assert "deep" in run(body, CRUCIBLE_LOG_LEVEL="debug").stderr
    assert run(body, CRUCIBLE_LOG_LEVEL="loud").returncode == 2


def test_fork_support_of_grpc_is_off():
    done = run("import os; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])")
    assert done.stdout == "0\n"


def test_an_interrupt_is_no_traceback():
    running = subprocess.Popen(
        script("print('up', flush=True)\nawait asyncio.sleep(60)"),
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout.readline() == "up\n"
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=30)
    assert (running.returncode, stderr) == (130, "")


def test_errors_and_settings_need_no_grpc():
    names = ", ".join(f"crucible_rpc.{name}" for name in ("errors", "settings", "signing", "logs", "pki", "admin"))
    code = f"import sys, {names}\nassert 'grpc' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
