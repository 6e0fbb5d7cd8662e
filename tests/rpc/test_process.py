import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

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
        ("return 3", 3, ""),
        ("raise SystemExit(4)", 4, ""),
        ("raise SystemExit", 0, ""),
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


def test_messages_for_a_service_interrupt_nobody():
    done = run("import os; print(os.sched_getscheduler(0) == os.SCHED_BATCH)")
    assert done.stdout == "True\n"


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


def test_a_thread_that_still_runs_does_not_change_the_end():
    """As a library's may."""
    body = """
    import threading, time
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("whole")
    """
    done = run(body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "whole\n", "")


def test_what_cannot_be_delivered_is_no_success():
    with Path("/dev/full").open("w") as full:
        where = {"stdout": full, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run(script("print('x')"), env={"PATH": os.environ["PATH"]}, timeout=30, **where)
    lost = "what was written to <stdout> is lost: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, lost)


def test_an_abort_in_native_code_tells_where():
    done = run("import os; os.abort()")
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr
    assert "in main" in done.stderr


CLEANS_UP = """
import atexit, signal, sys
from crucible_rpc import signals
def told(text):
    print(text, flush=True)
    sys.stdin.readline()
atexit.register(told, "the loop is closed")
stop = signals.caught()
loop = asyncio.get_running_loop()
print("up", flush=True)
await stop.wait()
await loop.run_in_executor(None, told, "cleaning up")
stop.clear()
await loop.run_in_executor(None, told, "still cleaning up")
print("clean", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_during_the_clean_up_and_after_it_change_nothing(number):
    """A killed parent with several threads signals its children once per thread."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(script(CLEANS_UP), env={"PATH": os.environ["PATH"]}, **pipes) as running:
        assert running.stdout.readline() == "up\n"
        running.send_signal(number)
        for expected in ("cleaning up\n", "still cleaning up\n"):
            assert running.stdout.readline() == expected
            for _ in range(5):
                running.send_signal(number)
            running.stdin.write("\n")
            running.stdin.flush()
        assert running.stdout.readline() == "clean\n"
        assert running.stdout.readline() == "the loop is closed\n"
        for _ in range(5):
            running.send_signal(number)
        _, stderr = running.communicate("\n", timeout=30)
    assert (running.returncode, stderr) == (0, "")


def test_child_whose_killed_parent_had_many_threads_cleans_up_to_the_end(tmp_path):
    """The kernel's own signals: as many as the parent had threads."""
    witness = tmp_path / "witness"
    # Whoever read its output is dead by then.
    silent = CLEANS_UP.replace("print(text, flush=True)", "pass").replace('print("clean", flush=True)\n', "")
    body = silent.replace("def told(text):", f"def told(text):\n    open({str(witness)!r}, 'a').write(text + '.')")
    child = script(body.replace("sys.stdin.readline()", "import time; time.sleep(0.2)"))
    parent = f"""
import subprocess, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
child = subprocess.Popen(["/usr/bin/setpriv", "--pdeathsig", "TERM", "--", *{child!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as killed:
        pid = int(killed.stdout.readline())
        descriptor = os.pidfd_open(pid)
        killed.kill()
    try:
        assert select.select([descriptor], [], [], 30)[0], "it did not end"
    finally:
        os.close(descriptor)
    assert witness.read_text() == "cleaning up.still cleaning up.the loop is closed."


def test_errors_and_settings_need_no_grpc():
    names = ", ".join(f"crucible_rpc.{name}" for name in ("errors", "settings", "signing", "logs", "pki", "admin"))
    code = f"import sys, {names}\nassert 'grpc' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
