"""Which programs an interpreter can wait for: those that cannot tell that it was there before them.

Such an interpreter is the program's own process from its first instruction on, with the program's argv, environment,
user and limits; only the file that it is told to run comes later (`executor/init/init.c` says how). So it must look at
nothing else of the program before it reads that file, read all of it before it runs any of it, and take it from a pipe
as from a file. CPython does, but for the cases that `interpreter` excludes; bash, which reads a script as it goes and
keeps it open, does not.
"""

from __future__ import annotations

import re

from crucible_executor.model import File, Interpreter, Limits, Program

MAX_FILE_BYTES = 60 << 10
"""What a pipe takes whole; `MAX_HELD` of `executor/init/protocol.h`."""

_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-_.a-zA-Z0-9]+)", re.ASCII | re.MULTILINE)
_NAMES = frozenset({"PATH", "HOME", "LANG"})
_LINE_END = re.compile(rb"\r\n|\r|\n")


def interpreter(program: Program, limits: Limits, *, entrypoint: str, reads_whole_file: bool) -> Interpreter | None:
    """The interpreter that can wait for this program; None when the program could tell, or would run differently.

    Args:
        program: what will be run.
        limits: of the run.
        entrypoint: the path of the program's file that its command runs.
        reads_whole_file: what its runtime declares.
    """
    content = next((file.content for file in program.files if file.path == entrypoint), None)
    if not reads_whole_file or content is None or not _plain_source(entrypoint, content):
        return None
    # Other variables (PYTHONPATH, LD_PRELOAD, ...) may lead an interpreter to files before its program.
    if not _NAMES.issuperset(program.env) or any(_looked_at_before(file) for file in program.files):
        return None
    return Interpreter(
        command=program.command,
        env=tuple(program.env.items()),
        file=entrypoint,
        processes=limits.processes,
        open_files=limits.open_files,
    )


def serves(waiting: Interpreter, program: Program, limits: Limits) -> bool:
    """Whether `waiting` is what this program would have been given."""
    return interpreter(program, limits, entrypoint=waiting.file, reads_whole_file=True) == waiting


def _plain_source(entrypoint: str, content: bytes) -> bool:
    """Not a folder's file, an archive or compiled code (CPython seeks in them), nor in another encoding (likewise)."""
    if "/" in entrypoint or entrypoint.endswith(".pyc") or b"\0" in content or len(content) > MAX_FILE_BYTES:
        return False
    first_lines = b"\n".join(_LINE_END.split(content, maxsplit=2)[:2])
    return all(name.lower().replace(b"_", b"-") == b"utf-8" for name in _CODING.findall(first_lines))


def _looked_at_before(file: File) -> bool:
    """CPython's `site` looks for packages of the user, whose home may be `/workspace` or a folder in it."""
    return ".local" in file.path.split("/")
