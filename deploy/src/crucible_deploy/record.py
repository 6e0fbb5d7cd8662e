"""What the running supervisor of a home says of itself on disk, and the lock that allows one at a time."""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crucible_deploy.atomic import read_file, write_file
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import Layout


@dataclass(frozen=True)
class Record:
    """The supervisor of a home and what it runs.

    Attributes:
        supervisor: the supervisor itself.
        address: `host:port` of the gateway.
        ready: whether every process was ready.
        processes: the processes it started last, by name.
    """

    supervisor: ProcessIdentity
    address: str
    ready: bool = False
    processes: dict[str, ProcessIdentity] = field(default_factory=dict)


def write(layout: Layout, record: Record) -> None:
    """Replaces the record of this home."""
    write_file(_file(layout), json.dumps(asdict(record), indent=1).encode(), mode=0o600)


def read(layout: Layout) -> Record | None:
    """The record of the latest supervisor of this home, which may be gone; None when there is none."""
    content = read_file(_file(layout))
    if content is None:
        return None
    try:
        data = json.loads(content)
        return Record(
            ProcessIdentity(**data["supervisor"]),
            data["address"],
            data["ready"],
            {name: ProcessIdentity(**one) for name, one in data["processes"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # cut short by a full disk, say: the same as none, for the lock decides who runs


def remove(layout: Layout) -> None:
    """Removes the record of this home."""
    _file(layout).unlink(missing_ok=True)


def lock(layout: Layout) -> int | None:
    """Takes this home's lock and returns its descriptor, which a child can inherit; None when it is held."""
    path = layout.run / "supervisor.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _file(layout: Layout) -> Path:
    return layout.run / "supervisor.json"
