"""Small files that commands read and write, each failure one line."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from crucible_client.cli.failures import Failure

MAX_BYTES = 1 << 20


def read(file: Path) -> bytes:
    """The whole of a small file; one byte more than `MAX_BYTES` of a larger one."""
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}") from None


def write(file: Path, data: bytes) -> None:
    """Writes a file as a whole or not at all, over one that is there."""
    try:
        descriptor, name = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                os.fchmod(descriptor, 0o644)
            Path(name).replace(file)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror}") from None
