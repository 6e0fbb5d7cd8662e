"""The unprivileged users of the processes: made when missing, removed only when Crucible made them."""

import grp
import json
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy.atomic import write_file

PREFIX = "crucible-"


class UsersError(Exception):
    """A user cannot be made or is not fit for a service; the text is one line."""


@dataclass(frozen=True)
class Account:
    """A user of the system and its primary group."""

    name: str
    uid: int
    gid: int


ROOT = Account("root", 0, 0)


_TRANSIENT_IDS = range(61184, 65520)
"""What systemd sets aside for users that exist only while something runs."""


def transient() -> Account:
    """A user that has no name, no file and no process on this machine, for one piece of work.

    Raises:
        UsersError: none is free.
    """
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {entry.gr_gid for entry in grp.getgrall()}
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            taken.add(path.stat().st_uid)
    free = [number for number in _TRANSIENT_IDS if number not in taken]
    if not free:
        raise UsersError(f"no user id from {_TRANSIENT_IDS[0]} to {_TRANSIENT_IDS[-1]} is free")
    number = secrets.choice(free)
    return Account(f"uid-{number}", number, number)


def without_privilege(account: Account) -> list[str]:
    """The start of a command that goes on as this user without groups and capabilities, now and for ever.

    It dies with its parent: a change of the user undoes what was said of that before.
    """
    return [
        *("setpriv", "--reuid", str(account.uid), "--regid", str(account.gid), "--clear-groups"),
        *("--pdeathsig", "KILL"),
        *("--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs", "--"),
    ]


def record_of(home: Path) -> Path:
    """The file that lists the users which the stack of this home made."""
    return home / "users.json"


def ensure(home: Path, processes: Iterable[str]) -> dict[str, Account]:
    """The users `crucible-<process>`, by process; makes those that are missing and records which those were.

    Raises:
        UsersError: one cannot be made, or one that exists is root or shares its id with another.
    """
    accounts = {process: _ensure_one(home, PREFIX + process) for process in processes}
    for account in accounts.values():
        if account.uid == 0 or account.gid == 0:
            raise UsersError(f"the user {account.name} has root's user or group id; remove it and try again")
    if len({account.uid for account in accounts.values()}) != len(accounts):
        raise UsersError(f"two of {', '.join(a.name for a in accounts.values())} share a user id; remove one of them")
    return accounts


def existing(process: str) -> Account:
    """The user `crucible-<process>` of this machine.

    Raises:
        UsersError: there is none, or it is root.
    """
    account = _lookup(PREFIX + process)
    if account is None:
        raise UsersError(f"there is no user {PREFIX + process}; `crucible up` makes it")
    if account.uid == 0 or account.gid == 0:
        raise UsersError(f"the user {account.name} has root's user or group id; remove it and try again")
    return account


def made_by(home: Path) -> list[str]:
    """Names of the users that the stack of this home made, also those that exist no more."""
    try:
        names = json.loads(record_of(home).read_text())["made"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise UsersError(
            f"{record_of(home)} is damaged; remove it, and the users that are not needed by hand"
        ) from None
    return [name for name in names if isinstance(name, str) and name.startswith(PREFIX)]


def adopt(home: Path, names: Iterable[str]) -> None:
    """Records users as made by the stack of this home, which goes on to need them."""
    write_file(record_of(home), json.dumps({"made": sorted({*made_by(home), *names})}).encode(), mode=0o644)


def remove_made(home: Path) -> list[str]:
    """Removes the users that the stack of this home made, and no other; returns the names of those removed.

    Raises:
        UsersError: one cannot be removed, as while a process of it runs.
    """
    removed = []
    for name in made_by(home):
        if _lookup(name) is not None:
            _run("userdel", name)
            removed.append(name)
    record_of(home).unlink(missing_ok=True)
    return removed


def _ensure_one(home: Path, name: str) -> Account:
    found = _lookup(name)
    if found is not None:
        return found
    # Recorded first: a crash in between must not leave a user that nobody knows to be ours.
    adopt(home, [name])
    shell = "/usr/sbin/nologin"
    _run(
        "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", shell, name
    )
    found = _lookup(name)
    if found is None:
        raise UsersError(f"useradd made no user {name}")
    return found


def _lookup(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, entry.pw_gid)


def _run(name: str, *arguments: str) -> None:
    # Not in every user's PATH, root's by `sudo` and `su` included.
    program = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise UsersError(f"{name} is not installed; install the package passwd")
    command = [program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise UsersError(f"{name} {arguments[-1]} failed: {done.stderr.strip()[:300]}")
