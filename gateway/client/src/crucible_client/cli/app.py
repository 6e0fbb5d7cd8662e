"""The entry point: finds commands when they are needed, here and in other distributions."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

import click

ENTRY_POINT_GROUP = "crucible.commands"

_PACKAGE = "crucible_client.cli"
_COMMANDS: Mapping[str, str] = {
    "run": "run:run",
    "submit": "submit:submit",
    "batch": "batch:batch",
    "list": "evaluations:list_",
    "get": "evaluations:get",
    "watch": "evaluations:watch",
    "logs": "evaluations:logs",
    "cancel": "evaluations:cancel",
    "delete": "evaluations:delete",
    "status": "status:status",
    "selftest": "selftest:selftest",
    "key": "keys:key",
    "audit": "audit:audit",
    "receipt": "receipts:receipt",
    "artifacts": "artifacts:artifacts",
    "tenant": "tenants:tenant",
    "queue": "queue:queue",
    "bench": "bench:bench",
}


class LazyGroup(click.Group):
    """Loads a command when it is used: one that cannot be loaded does not break the others.

    Commands of other distributions come from the entry-point group `crucible.commands`; they cannot replace these.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Own commands in their order, then those of other distributions."""
        return [*_COMMANDS, *sorted(set(_entry_points()) - set(_COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """The command, or one that says why it cannot be loaded; None when there is none."""
        if cmd_name in _COMMANDS:
            module, attribute = _COMMANDS[cmd_name].split(":")
            found = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), attribute)
            return found if isinstance(found, click.Command) else None
        point = _entry_points().get(cmd_name)
        return None if point is None else _loaded(point)


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _loaded(point: EntryPoint) -> click.Command:
    try:
        command = point.load()
    except Exception as error:  # whatever another distribution raises, the other commands must work
        return _broken(point, f"{type(error).__name__}: {error}")
    if not isinstance(command, click.Command):
        return _broken(point, f"{point.value} is not a click command")
    return command


def _broken(point: EntryPoint, why: str) -> click.Command:
    distribution = point.dist.name if point.dist else "an unknown distribution"
    first_line = (why.splitlines() or [why])[0]

    def fail() -> None:
        from crucible_client.cli.failures import Failure

        raise Failure(f"the command {point.name!r} of {distribution} cannot be loaded ({first_line}); reinstall it")

    return click.Command(
        point.name,
        callback=fail,
        short_help="Cannot be loaded.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crucible-client")
def app() -> None:
    """Evaluates programs that nobody trusts.

    Which Crucible: CRUCIBLE_ADDRESS, CRUCIBLE_API_KEY and CRUCIBLE_CA_FILE, or client.toml in CRUCIBLE_HOME
    (/var/lib/crucible), which `crucible up` writes.
    """


def execute(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; what goes wrong is a line on standard error.

    Args:
        args: without the program's name; None: this process's own.
    """
    try:
        code = app.main(args, prog_name="crucible", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Runs the command line and exits."""
    sys.exit(execute())
