"""Files that are there whole or not at all, with an exact mode and owner from the first moment on."""

import contextlib
import os
import secrets
from pathlib import Path


def write_file(path: Path, content: bytes, *, mode: int, uid: int = 0, gid: int = 0) -> None:
    """Replaces `path` by a new file with this content, mode and owner; durable when it returns.

    Safe in a folder that its service owns: the folder is opened once without following a link, the temporary file is
    new, and a link in the place of `path` is replaced, not followed.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600, dir_fd=parent)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fchown(file, uid, gid)
                os.fchmod(file, mode)
                os.fsync(file)
            os.rename(temporary, path.name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            raise
        os.fsync(parent)
    finally:
        os.close(parent)


def read_file(path: Path, limit: int = 64 * 1024) -> bytes | None:
    """At most `limit` bytes of a regular file that is no link; None when there is none.

    Raises:
        OSError: it is there and cannot be read, or is a link.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(file, "rb") as stream:
        return stream.read(limit)
