"""Whether storage runs on a state folder, and the right to work on it while it does not."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crucible_rpc.errors import StartError
from crucible_storage.state import LOCK


@contextmanager
def stopped(folder: Path) -> Iterator[bool]:
    """Whether no storage process uses the folder; while the block lasts none can start then.

    Raises:
        StartError: there is no such folder, or it cannot be used.
    """
    if not folder.is_dir():
        raise StartError(f"there is no state folder {folder}; storage makes it at its first start")
    try:
        lock = (folder / LOCK).open("ab")
    except OSError as error:
        raise StartError(f"the state folder {folder} cannot be used: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def needs_stopped(folder: Path, what: str) -> Iterator[None]:
    """The folder for ourselves alone.

    Raises:
        StartError: storage runs, or the folder cannot be used.
    """
    with stopped(folder) as alone:
        if not alone:
            raise StartError(f"storage runs on {folder}; {what} needs it stopped (`crucible down`)")
        yield
