"""Puts wheels from a lock file into a root file system, without running anything of theirs.

Only wheels, and only with the hashes of the lock: nothing is built. A user without any privilege downloads and unpacks
them, in a folder that holds nothing else; the interpreter that compiles them is started without `site`, which would run
what a package put into a `.pth` file.
"""

import os
import platform
import shutil
from pathlib import Path

from crucible_deploy import adoption, commands, environments, users
from crucible_deploy.failures import BuildError
from crucible_deploy.paths import Paths

_GLIBC = "manylinux_2_36"
"""What Debian 12 has."""
_MOST_FILE_BYTES = 1 << 30
_MOST_BYTES = 4 << 30
_MOST_ENTRIES = 250_000
_PASSED_ON = ("SSL_CERT_FILE", "SSL_CERT_DIR", "UV_DEFAULT_INDEX")


def install(lock: Path, root: Path, python: str, paths: Paths, log: Path) -> dict[str, str]:
    """Installs what the lock names, for the tree's own Python; returns names and versions.

    Args:
        lock: requirements with hashes.
        root: the tree, which is no one else's to change.
        python: the version of its Python.
        paths: where uv is.
        log: takes what the steps say.

    Raises:
        BuildError: something could not be downloaded, has another hash, or is no wheel.
    """
    account = users.transient()
    minor = ".".join(python.split(".")[:2])
    work = root.with_name("wheels")
    work.mkdir(mode=0o755)
    os.chown(work, account.uid, account.gid)
    requirements = root.with_name("requirements.txt")
    requirements.write_bytes(lock.read_bytes())
    requirements.chmod(0o644)
    parent_mode = root.parent.stat().st_mode
    root.parent.chmod(0o711)  # that user works in it
    try:
        _download(work, requirements, minor, account, _uv(paths), log)
    finally:
        root.parent.chmod(parent_mode)
    target = root / "usr/local/lib" / f"python{minor}" / "dist-packages"
    if target.exists():
        target.rmdir()
    target.parent.mkdir(parents=True, exist_ok=True)
    adoption.check(work / "site", account, entries=_MOST_ENTRIES, content_bytes=_MOST_BYTES)
    (work / "site").rename(target)
    shutil.rmtree(work)
    requirements.unlink()
    _compile(root, target, account, log)
    return _versions(lock)


def _download(work: Path, requirements: Path, minor: str, account: users.Account, uv: Path, log: Path) -> None:
    target = f"{platform.machine()}-{_GLIBC}"
    install = [
        *(str(uv), "pip", "install", "--target", "site", "--cache-dir", "cache", "--link-mode", "copy", "--no-config"),
        *("--python", str(environments.find_python()), "--python-version", minor, "--python-platform", target),
        *("--only-binary", ":all:", "--require-hashes", "--no-deps", "--requirement", str(requirements)),
    ]
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"HOME": str(work), "UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    commands.run(
        [*commands.jail(), *users.without_privilege(account), "prlimit", f"--fsize={_MOST_FILE_BYTES}", "--", *install],
        log,
        "uv could not install the wheels of the lock file (is the network there?)",
        environment=environment,
        folder=work,
    )


def _uv(paths: Paths) -> Path:
    found = paths.uv if paths.uv.is_file() else Path(shutil.which("uv") or "/nonexistent")
    if not environments.readable_by_all(found):
        raise BuildError(f"there is no uv that every user can run ({paths.uv}); run `make setup`")
    return found


def _compile(root: Path, target: Path, account: users.Account, log: Path) -> None:
    """Compiles what was installed, still as that user's: see `rootfs` for why."""
    python = ["/usr/bin/python3", "-I", "-S", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    inside = ["chroot", str(root), *users.without_privilege(account)]
    commands.run(
        [*commands.jail(), *inside, *python, f"/{target.relative_to(root)}"],
        log,
        "the wheels could not be compiled",
    )


def _versions(lock: Path) -> dict[str, str]:
    pinned = (line.split(" ")[0].split("==", 1) for line in lock.read_text().splitlines() if "==" in line)
    return dict(pinned)
