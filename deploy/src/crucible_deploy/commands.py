"""Runs the steps of a build: each with a small environment, its words in a log, and no longer than we live."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from crucible_deploy.failures import BuildError

_BASE = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


def jail() -> list[str]:
    """Mount and pid namespaces tied to our life: however a build ends, no mount and no process stays behind.

    Where that is impossible (say, in a chroot), a killed build's mounts are removed by the next one.
    """
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    possible = (
        subprocess.run([*apart, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    )
    return ["setpriv", "--pdeathsig", "KILL", *(apart if possible else [])]


def run(
    command: Sequence[str],
    log: Path,
    failure: str,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Runs a command to its end and returns its output; it dies with us, also on Ctrl-C.

    Args:
        command: program and arguments.
        log: takes what it says.
        failure: begins the error.
        environment: added to a small one of our own and the caller's proxies.
        folder: where it works; None for where we do.

    Raises:
        BuildError: it failed.
    """
    passed_on = {name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ}
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**_BASE, **passed_on, **(environment or {})},
            cwd=folder,
            start_new_session=True,
            text=True,
            umask=0o022,
        )
        try:
            output, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        errors.write(output.encode())
    if process.returncode != 0:
        raise BuildError(f"{failure}; the log is {log}\n{_tail(log)}")
    return output


def _tail(log: Path) -> str:
    """The last lines of the log, for a message."""
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-5:])
