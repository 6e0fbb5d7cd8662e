"""What goes wrong in a command, as one line and an exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from crucible_client.cli.output import printable
from crucible_client.errors import CallError, InvalidArgumentError
from crucible_client.public_keys import PublicKeysError
from crucible_client.receipts import ReceiptError
from crucible_client.settings import ClientSettingsError
from crucible_client.specs import ProgramError
from crucible_client.suites.humaneval import SamplesError
from crucible_client.suites.results_file import ResultsFileError
from crucible_rpc.errors import StartError

USAGE = 2
INTERRUPTED = 130


class Failure(click.ClickException):
    """One line on standard error, and the command's exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints the line."""
        print(f"crucible: {printable(self.message)}", file=file or sys.stderr)


@contextmanager
def failures(*, call: int = 1, invalid: int | None = None) -> Iterator[None]:
    """Turns what can go wrong inside into a `Failure`.

    Args:
        call: the exit code of a failed call.
        invalid: that of a call which the server refused as malformed; None: as `call`.
    """
    try:
        yield
    except InvalidArgumentError as error:
        fields = "; ".join(f"{one.field}: {one.description}" for one in error.violations)
        raise Failure(fields or error.message, call if invalid is None else invalid) from error
    except CallError as error:
        raise Failure(error.message, call) from error
    except (ClientSettingsError, StartError, ProgramError, SamplesError) as error:
        raise Failure(str(error), USAGE) from error
    except (ResultsFileError, PublicKeysError, ReceiptError) as error:
        raise Failure(str(error)) from error
