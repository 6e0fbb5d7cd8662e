"""The `crucible` command."""

from crucible_client.cli.app import main

__all__ = ["main"]
