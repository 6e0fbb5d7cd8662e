"""The options of `run` and `submit`: from a command line to a spec."""

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any, TypeVar

import click

from crucible_client.cli.sizes import DURATION, PAIR, SIZE
from crucible_client.specs import (
    RUNTIME_BY_SUFFIX,
    EvaluationSpec,
    File,
    Limits,
    Program,
    ProgramError,
    read_file,
    runtime_of,
)

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_RUNTIME = "python"
_MAX_STDIN_BYTES = 64 << 20

_OPTIONS = (
    click.argument("file", metavar="FILE|-"),
    click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]"),
    click.option("--runtime", help="Default: by the suffix of FILE (.py, .sh, .js); python for -."),
    click.option("--engine", default="", help="Default: the server's. Nothing else is ever used instead."),
    click.option("--file", "extra", type=PAIR, multiple=True, metavar="NAME=PATH", help="Puts PATH beside it as NAME."),
    click.option("--env", type=PAIR, multiple=True, metavar="NAME=VALUE", help="Adds to the program's environment."),
    click.option("--stdin", metavar="FILE|-", help="The program's standard input. Default: empty."),
    click.option("--wall-time", type=DURATION, help="As 30s: then it is ended."),
    click.option("--cpu-time", type=DURATION, help="As 10s, of the whole sandbox: then it is ended."),
    click.option("--cpus", type=click.FloatRange(min=0, min_open=True), help="CPUs it may use at once."),
    click.option("--memory", type=SIZE, help="As 512MiB, of the whole sandbox: above it is ended."),
    click.option("--processes", type=click.IntRange(min=1), help="Processes and threads at once."),
    click.option("--output-bytes", type=SIZE, help="As 1MiB, kept of stdout and of stderr each."),
    click.option("--disk", type=SIZE, help="As 64MiB, of its working folder and of /tmp each."),
    click.option("--priority", type=click.IntRange(-100, 100), default=0, help="Higher runs first. Default 0."),
    click.option("--label", type=PAIR, multiple=True, metavar="KEY=VALUE", help="For `crucible list --label`."),
)


def spec_options(command: F) -> F:
    """Adds the arguments and options that `spec_of` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def spec_of(
    *,
    file: str,
    args: tuple[str, ...],
    runtime: str | None,
    engine: str,
    extra: tuple[tuple[str, str], ...],
    env: tuple[tuple[str, str], ...],
    stdin: str | None,
    priority: int,
    label: tuple[tuple[str, str], ...],
    **limits: Any,
) -> EvaluationSpec:
    """The spec that the options ask for.

    Raises:
        ProgramError: a file cannot be read, or no runtime is known.
        click.UsageError: options that exclude each other.
    """
    if file == "-" and stdin == "-":
        raise click.UsageError("FILE and --stdin cannot both be -: there is one standard input")
    main, chosen = _main_file(file, runtime)
    files = (main, *(File(name, read_file(Path(path))) for name, path in extra))
    if len({one.path for one in files}) < len(files):
        raise ProgramError("two files have the same name; name them apart with --file NAME=PATH")
    program = Program(chosen, files, main.path, args, dict(env), _stdin(stdin))
    return EvaluationSpec(program, _limits(**limits), engine, priority, dict(label))


def _main_file(file: str, runtime: str | None) -> tuple[File, str]:
    if file != "-":
        return File(PurePath(file).name, read_file(Path(file))), runtime or runtime_of(file)
    chosen = runtime or DEFAULT_RUNTIME
    suffixes = {name: suffix for suffix, name in RUNTIME_BY_SUFFIX.items()}
    return File(f"main{suffixes.get(chosen, '')}", _read_stdin()), chosen


def _stdin(stdin: str | None) -> bytes:
    if stdin is None:
        return b""
    return _read_stdin() if stdin == "-" else read_file(Path(stdin))


def _read_stdin() -> bytes:
    content = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(content) > _MAX_STDIN_BYTES:
        raise ProgramError(f"the standard input is larger than {_MAX_STDIN_BYTES} bytes; no server takes that")
    return content


def _limits(
    *,
    wall_time: timedelta | None,
    cpu_time: timedelta | None,
    cpus: float | None,
    memory: int | None,
    processes: int | None,
    output_bytes: int | None,
    disk: int | None,
) -> Limits:
    return Limits(
        wall_time=wall_time,
        cpu_time=cpu_time,
        cpus=cpus,
        memory_bytes=memory,
        processes=processes,
        output_bytes=output_bytes,
        disk_bytes=disk,
    )
