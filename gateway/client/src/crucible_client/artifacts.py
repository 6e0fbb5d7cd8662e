"""Downloads of artifacts: how far one has come, and a file that is there whole and right or not at all."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crucible_client import errors, results


class Cursor:
    """How far a file has been read.

    Attributes:
        offset: of the next byte.
        left: bytes that are still wanted; 0: all that follow.
        done: whether none is.
    """

    def __init__(self, offset: int, limit: int) -> None:
        self.offset = offset
        self.left = limit
        self.done = False

    def accept(self, response: Any) -> bytes:
        """The bytes in a message of `ReadArtifact`.

        Raises:
            DataLossError: they are not those that follow.
        """
        data: bytes = response.data
        if response.offset != self.offset or (self.left and len(data) > self.left):
            text = f"the artifact goes on at {response.offset}, not at {self.offset}, or with more than was asked for"
            raise errors.DataLossError("ARTIFACT_GAP", text)
        self.offset += len(data)
        if self.left:
            self.left -= len(data)
            self.done = not self.left
        return data


def find(listed: results.Artifacts, path: str) -> results.Artifact:
    """The file of this path.

    Raises:
        NotFoundError: ARTIFACT_NOT_FOUND.
    """
    for one in listed.files:
        if one.path == path:
            return one
    raise errors.NotFoundError("ARTIFACT_NOT_FOUND", "the evaluation has no artifact of this path")


class Download:
    """A file that gets its name when its block ends and its bytes are those that were listed.

    Args:
        wanted: as it was listed.
        target: the name that it gets; a file of that name is replaced, a link is not followed.

    Raises:
        DataLossError: ARTIFACT_DAMAGED, at the block's end.
        OSError: it cannot be written.
    """

    def __init__(self, wanted: results.Artifact, target: Path) -> None:
        self._wanted = wanted
        self._target = target
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> Self:
        descriptor, name = tempfile.mkstemp(dir=self._target.absolute().parent, prefix=".crucible-")
        self._file = os.fdopen(descriptor, "wb")
        self._partial = Path(name)
        return self

    def write(self, data: bytes) -> None:
        """Takes the next bytes."""
        self._size += len(data)
        if self._size > self._wanted.bytes_kept:
            raise self._damaged()
        self._digest.update(data)
        self._file.write(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if error is None and (self._size, self._digest.digest()) != (
                    self._wanted.bytes_kept,
                    self._wanted.sha256,
                ):
                    raise self._damaged()
                os.fchmod(self._file.fileno(), 0o644)
            if error is None:
                self._partial.replace(self._target)
        finally:
            with suppress(FileNotFoundError):
                self._partial.unlink()

    def _damaged(self) -> errors.DataLossError:
        return errors.DataLossError("ARTIFACT_DAMAGED", "the bytes that came are not those that the list tells of")
