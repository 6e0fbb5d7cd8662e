"""What a caller asks for: programs, limits and specs, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

RUNTIME_BY_SUFFIX: Mapping[str, str] = {".js": "node", ".py": "python", ".sh": "bash"}


@dataclass(frozen=True, slots=True)
class File:
    """One file of a program.

    Attributes:
        path: relative to the program's working folder, parts separated by `/`.
        content: the file's bytes.
    """

    path: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        runtime: a name that `runtimes()` lists.
        files: at least one.
        entrypoint: the path of the file to start; may stay empty when there is one file.
        args: given to the program.
        env: added to the runtime's environment.
        stdin: what the program reads from its standard input, then end of file.
    """

    runtime: str
    files: tuple[File, ...] = field(repr=False)
    entrypoint: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    stdin: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one evaluation; None takes the server's default, which `capabilities()` tells.

    Attributes:
        wall_time: from the program's start to its forced end.
        cpu_time: of the whole sandbox.
        cpus: that the sandbox may use at once.
        memory_bytes: of the whole sandbox.
        processes: processes and threads at once.
        output_bytes: kept of each of stdout and stderr.
        open_files: descriptors of one process.
        disk_bytes: of the working folder, and again of `/tmp`.
        disk_inodes: of the working folder, and again of `/tmp`.
    """

    wall_time: timedelta | None = None
    cpu_time: timedelta | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    output_bytes: int | None = None
    open_files: int | None = None
    disk_bytes: int | None = None
    disk_inodes: int | None = None


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """What a caller asks for.

    Attributes:
        program: what to run.
        limits: its bounds.
        engine: a name that `capabilities()` lists; empty: the server's default. Nothing else is ever used instead.
        priority: -100 to 100; higher runs first among this tenant's work.
        labels: for finding it again with `list`.
    """

    program: Program
    limits: Limits = Limits()
    engine: str = ""
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


class ProgramError(ValueError):
    """A program cannot be made of what was given; the text says why."""


def runtime_of(path: str | Path) -> str:
    """The runtime that a file's suffix stands for.

    Raises:
        ProgramError: the suffix stands for none.
    """
    suffix = Path(path).suffix
    runtime = RUNTIME_BY_SUFFIX.get(suffix)
    if runtime is None:
        known = ", ".join(sorted(RUNTIME_BY_SUFFIX))
        raise ProgramError(f"no runtime is known for {Path(path).name!r} (known suffixes: {known}); name one")
    return runtime


def program_from_files(
    entrypoint: str | Path,
    *extra: str | Path,
    runtime: str | None = None,
    args: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Program:
    """Reads files of this machine into a program; each keeps its bare name.

    Args:
        entrypoint: the file to start.
        extra: files put beside it.
        runtime: None guesses it from the suffix of `entrypoint`.
        args: given to the program.
        env: added to its environment.
        stdin: what it reads from its standard input.

    Raises:
        ProgramError: a file cannot be read, two have one name, or the suffix stands for no runtime.
    """
    paths = [Path(entrypoint), *(Path(path) for path in extra)]
    files = tuple(File(path.name, read_file(path)) for path in paths)
    if len({file.path for file in files}) < len(files):
        raise ProgramError("two of the files have the same name; rename one")
    chosen = runtime or runtime_of(entrypoint)
    return Program(chosen, files, paths[0].name, tuple(args), dict(env or {}), stdin)


def read_file(path: Path, limit: int = 64 << 20) -> bytes:
    """The bytes of a file of this machine.

    Raises:
        ProgramError: it cannot be read, or holds more than `limit` bytes, far above what any server takes.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise ProgramError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise ProgramError(f"{path} is larger than {limit} bytes; no server takes that")
    return content
