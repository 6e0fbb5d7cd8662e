"""One locked Python environment per process, owned by root: nothing that runs is writable by what runs it.

The supervisor builds them from a checkout (`uv.lock` and the sources of the process); the processes never see it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crucible_deploy.atomic import read_file, write_file
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from crucible_deploy.users import ROOT, Account

SOURCES = {
    "gateway": "gateway",
    "storage": "storage",
    "monitor": "monitor",
    "executor": "executor",
    "worker": "executor/worker",
}
"""The folder of each process's distribution in a checkout."""

_DIGEST_FILE = ".crucible-digest"
_MIN_PYTHON = (3, 11)
_BUILD_SECONDS = 900


class EnvironmentsError(Exception):
    """An environment cannot be built or used; the text is one line that says what to do."""


def find_source(start: Path | None = None) -> Path:
    """The checkout that this code runs from, or `CRUCIBLE_SOURCE`'s when given as `start`.

    Raises:
        EnvironmentsError: there is none.
    """
    here = start or Path(__file__).resolve()
    for folder in (here, *here.parents):
        if (folder / "uv.lock").is_file() and (folder / "protos" / "pyproject.toml").is_file():
            return folder
    raise EnvironmentsError("no checkout of Crucible found to install from; set CRUCIBLE_SOURCE to one")


def find_python() -> Path:
    """A Python of at least 3.11 that every user can run.

    Raises:
        EnvironmentsError: there is none.
    """
    # The system's own, else the one that set-up took, else any other.
    own = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    others = [Path("/usr/bin") / f"python3.{minor}" for minor in (14, 13, 12, 11)]
    for path in (Path("/usr/bin/python3"), own, *others):
        if path.exists() and readable_by_all(path.resolve()) and _version(path) >= _MIN_PYTHON:
            return path
    raise EnvironmentsError("no Python 3.11 or newer that all users can run; install the package python3.11")


def ensure(layout: Layout, source: Path, accounts: Mapping[str, Account]) -> list[str]:
    """Builds the environments that are missing or not of the current sources; returns the names of those built.

    Raises:
        EnvironmentsError: one cannot be built, or its user cannot import it.
    """
    python = find_python()
    built = []
    for process in SOURCES:
        target = layout.environment(process)
        digest = source_digest(source, process, python)
        if _current_digest(target) != digest:
            _build(layout.paths, target, source, process, python)
            _close_to_others(target)
            _check_import(target, process, accounts.get(process, ROOT))
            write_file(target / _DIGEST_FILE, digest.encode(), mode=0o644)
            built.append(process)
    return built


def interpreter(layout: Layout, process: str) -> Path:
    """The Python of a process's environment."""
    return layout.environment(process) / "bin" / "python"


def source_digest(source: Path, process: str, python: Path) -> str:
    """Hex SHA-256 over all that an environment is made of: the lock, the sources, the interpreter."""
    digest = hashlib.sha256(f"{python}\0{python.resolve()}\0{_version(python)}\0".encode())
    own = source / SOURCES[process]
    parts = [source / "uv.lock", own / "pyproject.toml", source / "protos" / "pyproject.toml"]
    parts += sorted(_source_files(own / "src"))
    parts += sorted(_source_files(source / "protos" / "src"))
    for path in parts:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(source)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _source_files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".pyc")


def _current_digest(target: Path) -> str | None:
    content = read_file(target / _DIGEST_FILE)
    return None if content is None else content.decode(errors="replace")


def _build(paths: Paths, target: Path, source: Path, process: str, python: Path) -> None:
    pinned = paths.uv.is_file()
    uv = str(paths.uv) if pinned else shutil.which("uv")
    if uv is None:
        raise EnvironmentsError("uv is not installed; run `make setup`, or see https://docs.astral.sh/uv")
    # From nothing each time: what an interrupted build left would be taken for installed.
    if target.exists():
        shutil.rmtree(target)
    package = f"crucible-{process}"
    # Killed with the thread that waits for it: what outlives it would make a home again that was removed meanwhile.
    command = ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--", uv, "sync", "--frozen", "--no-dev", "--no-editable"]
    command += ["--compile-bytecode", "--package", package]
    command += ["--refresh-package", package, "--refresh-package", "crucible-protos", "--quiet"]
    ours = ("VIRTUAL_ENV", "UV_PROJECT", "UV_PROJECT_ENVIRONMENT", "UV_NO_SYNC", "PYTHONPATH", "PYTHONHOME")
    environ = {name: value for name, value in os.environ.items() if name not in ours}
    environ |= {
        "UV_PROJECT_ENVIRONMENT": str(target),
        "UV_PYTHON": str(python),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_LINK_MODE": "copy",  # a hard link would share its owner and mode with root's cache
        "UV_SYSTEM_CERTS": "1",  # as apt and pip: the machine's own certificates, whoever signs for its proxy
    }
    if pinned:
        environ.setdefault("UV_CACHE_DIR", str(paths.uv_cache))  # where set-up has put the same packages already
    try:
        done = subprocess.run(
            command, cwd=source, env=environ, umask=0o022, capture_output=True, timeout=_BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentsError(
            f"uv sync of {package} took longer than {_BUILD_SECONDS} s; is the network up?"
        ) from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()[-1500:]
        raise EnvironmentsError(f"uv sync of {package} failed:\n{words}")


def _close_to_others(target: Path) -> None:
    """Owned by root, readable by all and writable by root alone, whatever modes the cache or the umask gave."""
    for parent, _, files in os.walk(target):
        os.chown(parent, 0, 0, follow_symlinks=False)
        Path(parent).chmod(0o755)
        for name in files:
            path = Path(parent, name)
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _check_import(target: Path, process: str, account: Account) -> None:
    """Tries it as the user who will run it: a folder on the way that only root can enter shows here."""
    command = [str(target / "bin" / "python"), "-I", "-c", f"import crucible_{process}, crucible_rpc"]
    who: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": []}
    done = subprocess.run(command, env={}, cwd="/", capture_output=True, timeout=60, check=False, **who)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()[-500:]
        raise EnvironmentsError(f"the user {account.name} cannot run {target}:\n{words}")


def readable_by_all(path: Path) -> bool:
    """Whether every user can reach and run this file."""
    return path.stat().st_mode & 0o005 == 0o005 and all(p.stat().st_mode & 0o001 for p in path.parents)


def _version(python: Path) -> tuple[int, ...]:
    ask = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, timeout=30, check=False)
    return tuple(int(part) for part in done.stdout.split()) if done.returncode == 0 else ()
