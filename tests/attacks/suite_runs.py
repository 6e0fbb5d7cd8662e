"""Runs the suite as the command that people run, and looks for what a run left on the machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests import cgroup_tree

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]

BROKEN = """
import asyncio, dataclasses, sys
from crucible_executor.verify import __main__, attempts
from crucible_executor.verify.model import Verdict
changed = {changed}
__main__.ATTEMPTS = tuple(
    dataclasses.replace(one, **changed[one.name]) for one in attempts.ATTEMPTS if one.name in changed
)
sys.exit(__main__.main(["--json", *sys.argv[1:]]))
"""


def command(*arguments):
    return [sys.executable, "-m", "crucible_executor.verify", *arguments]


def only(*names):
    return [argument for name in names for argument in ("--only", name)]


def run(environment, argv):
    """The attempts by name, and the exit code. Nothing of the run may be left."""
    with subprocess.Popen(
        argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as suite:
        try:
            out, err = suite.communicate(timeout=280)
        finally:
            suite.terminate()
    assert suite.returncode in (0, 1), err
    assert leftovers(suite.pid) == []
    made = json.loads(out)
    assert made["good"] == (suite.returncode == 0)
    return {one["name"]: one for one in made["attempts"]}, suite.returncode


def changed(environment, engine, **attempts):
    return run(environment, [sys.executable, "-c", BROKEN.format(changed=attempts), "--engine", engine])


def leftovers(pid):
    """What is left of the suite whose command had this process id."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "crucible-verify" in line]
    loops = [str(one) for one in Path("/sys/block").glob("loop*/loop/backing_file") if name(pid) in _text(one)]
    return [*mounts, *loops, *map(str, cgroups(pid)), *processes(pid)]


def cgroups(pid):
    return sorted((one for one in cgroup_tree.cgroups() if one.name.startswith(name(pid))), reverse=True)


def processes(pid):
    told = [_text(one) for one in Path("/proc").glob("[0-9]*/cmdline")]
    return [one for one in told if name(pid) in one]


def until_no_process_is_left(pid, limit_s=20):
    deadline = time.monotonic() + limit_s
    while left := processes(pid) + [_text(one / "cgroup.procs") for one in cgroups(pid) if _text(one / "cgroup.procs")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def name(pid):
    """What the names of a run's folders and cgroups begin with."""
    return f"cv{pid:07d}"


def _text(path):
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
