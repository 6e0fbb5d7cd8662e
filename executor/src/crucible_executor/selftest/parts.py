"""All checks of one executor, put together."""

from __future__ import annotations

from collections.abc import Sequence

from crucible_executor.catalog import Catalog
from crucible_executor.selftest import journal, machine, signatures
from crucible_executor.selftest.model import ENGINE, Check, CheckNotRunError
from crucible_executor.settings import Settings
from crucible_executor.statedir import StateDir
from crucible_executor.tickets import TicketCheck
from crucible_rpc.signing import Signer


class Parts:
    """The parts of a started executor.

    Args:
        settings: where its things are.
        state: its state folder.
        catalog: its engines.
        tickets: checks its tickets.
        signer: signs its records.
    """

    def __init__(
        self, settings: Settings, state: StateDir, catalog: Catalog, tickets: TicketCheck, signer: Signer
    ) -> None:
        self._settings = settings
        self._state = state
        self._catalog = catalog
        self._tickets = tickets
        self._signer = signer

    def checks(self, engine: str) -> Sequence[Check]:
        """Those of every part, with those of one engine; empty: of all engines."""
        made = [
            *journal.checks(self._state.path),
            *signatures.checks(self._signer, self._tickets),
            *machine.checks(self._settings),
        ]
        for name, offered in self._catalog.engines.items():
            if engine in ("", name):
                usable = not offered.unavailable or name == self._catalog.default_engine
                made += offered.engine.self_test() if usable else [_not_run(name, offered.unavailable)]
        return made


def _not_run(engine: str, reason: str) -> Check:
    async def measure() -> str:
        raise CheckNotRunError(reason)

    return Check(f"{ENGINE} {engine}", "it can be used on this machine", measure)
