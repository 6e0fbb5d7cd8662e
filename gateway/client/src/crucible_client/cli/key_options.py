"""The option that says where public keys are, and where they are when it does not."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from crucible_client.public_keys import PublicKeys
from crucible_client.settings import DEFAULT_HOME

F = TypeVar("F", bound=Callable[..., object])


def keys_option(command: F) -> F:
    """`--keys FOLDER`."""
    text = "Folder with the public keys, heads/*.pub and records/*.pub. [default: pki/public in CRUCIBLE_HOME]"
    return click.option("--keys", type=click.Path(file_okay=False, path_type=Path), help=text)(command)


def default_folder() -> Path:
    """Where an installation on this machine keeps them."""
    return Path(os.environ.get("CRUCIBLE_HOME") or DEFAULT_HOME) / "pki" / "public"


def in_folder(folder: Path | None) -> PublicKeys:
    """The keys in this folder, or in the default one.

    Raises:
        PublicKeysError: there are none.
    """
    return PublicKeys.of_folder(folder or default_folder())
