"""`python -m crucible_client` is the `crucible` command."""

from crucible_client.cli import main

main()
