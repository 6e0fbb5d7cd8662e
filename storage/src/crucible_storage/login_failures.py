"""Failed logins in the audit log: counted, and noted once a minute, so that nobody can flood the log with them."""

import logging
from collections import Counter
from datetime import timedelta

from crucible_rpc.errors import CallError
from crucible_storage import audit
from crucible_storage.clock import Clock
from crucible_storage.database import Database
from crucible_storage.models import PLATFORM
from crucible_storage.regularly import regularly
from crucible_storage.transaction import WriteTransaction

INTERVAL = timedelta(minutes=1)
MAX_KEYS = 16
"""Revoked keys that are told apart in one minute; the rest is counted together."""

UNKNOWN = "keys/unknown"
OTHERS = "keys/others"
_FAILED = "failed logins could not be noted"
_LOG = logging.getLogger(__name__)


class LoginFailures:
    """Counts in memory; at most `MAX_KEYS` + 2 records a minute. What was counted when the process is killed is lost.

    Args:
        database: where they are noted.
        clock: for the records' times.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, *, tenant: str = PLATFORM, key_id: str = "") -> None:
        """One more: with an unknown key, or with this revoked one of this tenant."""
        which = (tenant, f"keys/{key_id}") if key_id else (PLATFORM, UNKNOWN)
        if which not in self._counts and len(self._counts) > MAX_KEYS and key_id:
            which = (PLATFORM, OTHERS)
        self._counts[which] += 1

    async def run(self) -> None:
        """Notes what was counted every `INTERVAL`, until cancelled, and then what is left."""
        try:
            await regularly(INTERVAL.total_seconds(), self.note, _FAILED)
        finally:
            try:
                await self.note()
            except CallError as error:
                _LOG.warning("%s: %s", _FAILED, error)
            except Exception:  # whatever it is, what else ends with storage is to end in order
                _LOG.exception(_FAILED)

    async def note(self) -> None:
        """Notes what was counted, now.

        Raises:
            CallError: it could not be stored; it is counted on.
        """
        counts, self._counts = self._counts, Counter()
        if not counts:
            return

        def run(transaction: WriteTransaction) -> None:
            now = self._clock.now()
            for (tenant, subject), count in sorted(counts.items()):
                audit.record(
                    transaction,
                    time=now,
                    tenant=tenant,
                    actor="process/gateway",
                    action=audit.LOGIN_FAILURE,
                    subject=subject,
                    count=count,
                )

        try:
            await self._database.write(run)
        except Exception:
            self._counts.update(counts)
            raise
