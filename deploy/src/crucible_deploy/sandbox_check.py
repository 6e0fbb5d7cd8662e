"""Starts one real sandbox and takes it down again: the only proof that this machine can run one."""

import json
import subprocess
import tempfile
from pathlib import Path

_SECONDS = 60.0
_ANSWER = "sandboxed"


def start_sandbox(runsc: Path, rootfs: Path) -> str:
    """Runs one line of Python in a gVisor sandbox without network, and returns the sandbox's idea of its kernel.

    Raises:
        SandboxError: it did not start, or did not answer within a minute; the text holds runsc's own words.
    """
    with tempfile.TemporaryDirectory(prefix="crucible-doctor-") as scratch:
        bundle, state = Path(scratch, "bundle"), Path(scratch, "state")
        bundle.mkdir()
        state.mkdir()
        (bundle / "config.json").write_text(json.dumps(_bundle_config(rootfs)))
        command = [str(runsc), f"--root={state}", "--network=none", "--platform=systrap", "--ignore-cgroups"]
        name = Path(scratch).name
        try:
            done = _run([*command, "run", f"--bundle={bundle}", name])
        except subprocess.TimeoutExpired:
            raise SandboxError(f"no answer within {_SECONDS:.0f} s") from None
        finally:
            _run([*command, "delete", "--force", name])
    answer = done.stdout.split(" ", 1)
    if done.returncode != 0 or answer[0] != _ANSWER:
        words = done.stderr.strip().splitlines()
        raise SandboxError(words[-1][:300] if words else f"exit code {done.returncode} without a word")
    return answer[1].strip()


class SandboxError(Exception):
    """No sandbox could be started; the text says why."""


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SECONDS,
        check=False,
    )


def _bundle_config(rootfs: Path) -> dict[str, object]:
    """The smallest bundle: nobody's user, no capability, a read-only root."""
    program = f"import platform; print({_ANSWER!r}, platform.release())"
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 65534, "gid": 65534},
            "args": ["/usr/bin/python3", "-I", "-c", program],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "sandbox",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }
