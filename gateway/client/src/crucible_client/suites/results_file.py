"""Grades kept in a file as they come, so that a suite that was stopped goes on where it was."""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from crucible_client.suites.grading import Grade


class ResultsFileError(Exception):
    """The file cannot be used; the text is one line that says why."""


class ResultsFile:
    """One JSON object per line, each on the disk before the next is waited for.

    A grade counts when its sample's index and digest are still the same. Samples that the infrastructure failed are
    kept for the record and run again. A last line that was cut off (the process was killed) is removed. One process
    at a time: the file is locked while it is open.

    Raises:
        ResultsFileError: it cannot be opened or locked, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise ResultsFileError(f"cannot keep results in {path}: {error.strerror}; name another file") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._grades = self._load()
        except BlockingIOError:
            self._file.close()
            raise ResultsFileError(f"{path} is in use by another run; wait for it, or name another file") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def grades(self) -> Mapping[tuple[int, str], Grade]:
        """The decided grades by index and digest."""
        return self._grades

    def add(self, grade: Grade) -> None:
        """Keeps a grade; it is on the disk when this returns."""
        line = json.dumps(asdict(grade), ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ResultsFileError(f"cannot write to {self._path}: {error.strerror}") from None
        if grade.passed is not None:
            self._grades[grade.index, grade.digest] = grade

    def _load(self) -> dict[tuple[int, str], Grade]:
        self._file.seek(0)
        grades: dict[tuple[int, str], Grade] = {}
        good = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break  # cut off while it was written
            good += len(line)
            grade = self._grade(number, line)
            if grade.passed is not None:
                grades[grade.index, grade.digest] = grade
        self._file.truncate(good)
        return grades

    def _grade(self, number: int, line: bytes) -> Grade:
        try:
            grade = Grade(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            grade = None
        if grade is None or not isinstance(grade.index, int) or grade.passed not in (True, False, None):
            raise ResultsFileError(f"{self._path}, line {number}: not a result of this suite; name another file")
        return grade
