"""What the supervisor is told of one process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy.users import Account

BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
"""What every process is given; nothing is inherited."""


@dataclass(frozen=True)
class ProcessSpec:
    """One process of the stack.

    Attributes:
        name: as in `crucible-<name>`.
        account: whom it runs as. Everybody but root is left without any capability, now and for ever.
        command: program and arguments.
        environment: added to a small fixed one; nothing is inherited.
        admin: `host:port` whose `/readyz` tells whether it is ready.
        stop_seconds: how long it may take to end after SIGTERM before it is killed.
    """

    name: str
    account: Account
    command: tuple[str, ...]
    environment: Mapping[str, str]
    admin: str
    stop_seconds: float = 15.0

    def full_environment(self) -> dict[str, str]:
        """The whole environment of the process."""
        return BASE_ENVIRONMENT | dict(self.environment)

    def wrapped_command(self, setpriv: str) -> list[str]:
        """The command behind `setpriv`, which gives up what the process must not have.

        SIGTERM when the supervisor dies, however it dies: nothing outlives it, and the executor still cleans up.
        """
        wrapper = [setpriv, "--pdeathsig", "TERM"]
        if self.account.uid != 0:
            wrapper += ["--reuid", str(self.account.uid), "--regid", str(self.account.gid), "--clear-groups"]
            wrapper += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
        return [*wrapper, "--", *self.command]


def module_command(python: Path, module: str) -> tuple[str, ...]:
    """The command that starts a module isolated from its user's and its working folder's Python files."""
    return (str(python), "-I", "-m", module)
