"""How a root file system is made from a recipe: a trimmed Debian from debootstrap, with wheels from a lock file."""

import glob
import hashlib
import json
import os
import platform
import shutil
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from crucible_deploy import commands, wheels
from crucible_deploy.failures import BuildError
from crucible_deploy.paths import Paths, sha256

_LOCKS = Path(__file__).with_name("locks")


@dataclass(frozen=True)
class Recipe:
    """All that decides what a root file system holds, apart from the distribution's own updates.

    `remove` are glob patterns below the root; of `empty` folders the content goes and the folder stays; `prepare` are
    folders with their mode. `lock` is a file in `locks/` that names wheels with their hashes. `revision` is raised
    whenever the code below changes what comes out.
    """

    name: str = "python"
    revision: int = 2
    suite: str = "bookworm"
    packages: tuple[str, ...] = ("python3",)
    remove: tuple[str, ...] = (
        # What debootstrap takes from the host, and what only the host's administrator needs.
        "etc/hostname", "etc/resolv.conf", "etc/machine-id", "etc/fstab", "etc/.pwd.lock", "etc/*-",
        "etc/shadow", "etc/gshadow", "etc/apt", "etc/cron.*", "etc/init.d", "etc/rc?.d",
        "etc/systemd", "etc/logrotate.d", "etc/security/opasswd",
        # The package manager's state: the manifest lists the packages.
        "var/lib/apt", "var/lib/dpkg", "var/cache/*", "var/log/*", "var/backups/*", "debootstrap",
        # Documentation and translations.
        "usr/share/doc/*", "usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/lintian",
        "usr/share/doc-base", "usr/share/bash-completion", "usr/share/bug", "usr/share/debconf", "usr/share/keyrings/*",
        "usr/lib/apt", "usr/lib/systemd", "lib/systemd",
    )  # fmt: skip
    empty: tuple[str, ...] = ("dev", "proc", "sys", "run", "tmp", "var/tmp", "root", "boot")
    prepare: tuple[tuple[str, int], ...] = (
        ("dev", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("workspace", 0o755),
        ("root", 0o755),
    )

    lock: str | None = None

    @property
    def lock_file(self) -> Path | None:
        """Where the lock is."""
        return None if self.lock is None else _LOCKS / self.lock

    @property
    def digest(self) -> str:
        """Names the recipe on this architecture: a manifest with another one is out of date."""
        said = asdict(self)
        if self.lock_file is None:
            del said["lock"]
        else:
            said["lock"] = sha256(self.lock_file)
        text = json.dumps([said, platform.machine()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


PYTHON = Recipe()
RECIPES = {
    recipe.name: recipe
    for recipe in (
        PYTHON,
        Recipe("python-science", lock="python-science.txt"),
        Recipe("node", packages=("nodejs",)),
    )
}
"""What can be built, by name. Set-up builds `python`; the others are built when they are asked for."""

# Times have no meaning in the tree, but equal ones keep two builds of it equal under rsync, tar and the like.
_EPOCH = 1_577_836_800
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"


def build(recipe: Recipe, root: Path, *, mirror: str, log: Path, paths: Paths) -> dict[str, object]:
    """Fills the folder `root`, which must not exist, and returns the facts for the manifest.

    Takes about a minute and 400 MB of disk on the way. Needs root.

    Raises:
        BuildError: a step failed; the text names the log.
    """
    _debootstrap(recipe, root, mirror, log)
    facts: dict[str, object] = {"packages": _packages(root, log)}
    if (root / "usr/bin/python3").exists():
        facts["python"] = _in(root, log, "python3", "-c", "import platform; print(platform.python_version())").strip()
    trim(recipe, root)
    if "python" in facts:
        _compile(root, log)
    if recipe.lock_file is not None:
        facts["wheels"] = wheels.install(recipe.lock_file, root, str(facts["python"]), paths, log)
    normalise(root)
    return facts


def _debootstrap(recipe: Recipe, root: Path, mirror: str, log: Path) -> None:
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keyring.is_file():
        raise BuildError(f"{keyring} is missing: apt-get install debian-archive-keyring")
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--keyring={keyring}",
        f"--include={','.join(recipe.packages)}",
        recipe.suite,
        str(root),
        mirror,
    ]
    failure = f"debootstrap could not build {recipe.suite} from {mirror} (is the network there?)"
    commands.run([*commands.jail(), *command], log, failure)


def _packages(root: Path, log: Path) -> dict[str, str]:
    listed = _in(root, log, "dpkg-query", "--show", "--showformat", "${Package} ${Version}\n")
    return dict(line.split(" ", 1) for line in listed.splitlines())


def trim(recipe: Recipe, root: Path) -> None:
    """Removes from the tree what no program in a sandbox needs, and prepares the folders that a sandbox mounts over."""
    for pattern in recipe.remove:
        # Not Path.glob, which passes over a link that leads nowhere.
        for found in glob.glob(pattern, root_dir=root, include_hidden=True):  # noqa: PTH207
            _remove(root / found)
    for name in recipe.empty:
        folder = root / name
        if folder.is_dir():
            for path in folder.iterdir():
                _remove(path)
    for name, mode in recipe.prepare:
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    for cached in list(root.rglob("__pycache__")):
        _remove(cached)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "hosts").write_text(_HOSTS)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _compile(root: Path, log: Path) -> None:
    """Compiles the standard library: in a read-only root nobody can do it later, and every start would parse it anew.

    The bytecode is not checked against its source, which cannot change, and so does not depend on times.
    """
    folders = [f"/{path.relative_to(root)}" for path in sorted((root / "usr/lib").glob("python3*"))]
    # -B and -f: what this very interpreter imports would otherwise be compiled on its way, checked by its time.
    compileall = ("python3", "-B", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash")
    _in(root, log, *compileall, *folders)


def normalise(root: Path) -> None:
    """Gives everything to root, takes away set-id bits, file capabilities and other attributes, and evens out times."""
    for path in (root, *root.rglob("*")):
        info = path.lstat()
        # chown clears set-id bits and capabilities of files by itself, but only where it changes something.
        os.chown(path, 0, 0, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False):
            if name != "security.selinux":
                os.removexattr(path, name, follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode):
            path.chmod(stat.S_IMODE(info.st_mode) & ~(stat.S_ISUID | stat.S_ISGID))
    for path in (*root.rglob("*"), root):
        os.utime(path, (_EPOCH, _EPOCH), follow_symlinks=False)


def _in(root: Path, log: Path, *command: str) -> str:
    """Runs a command of the tree inside it, with an environment that holds nothing of the caller's."""
    return commands.run(
        ["chroot", str(root), *command], log, f"`{' '.join(command[:3])}` failed in the new root file system"
    )
