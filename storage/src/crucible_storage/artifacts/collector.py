"""Removes objects that nobody refers to, a little at a time.

Safe beside those who store the same bytes, also by other processes: who wants to refer to a blob holds its row while it
adds the reference, and this looks for references only with that row locked, in a statement after the lock.
From DOOMED there is no way back, and an object's name is never used again; so the object can be removed at any time
after that. That is an hour later, so that who reads it meanwhile, or checks a copy of the database, still finds it.
"""

import logging
from datetime import timedelta

from sqlalchemy import bindparam, delete, exists, or_, select, update

from crucible_storage import models
from crucible_storage.artifact_tables import DOOMED, PRESENT, UPLOADING
from crucible_storage.artifacts.blob_store import BlobStore
from crucible_storage.artifacts.uploads import UPLOAD_SECONDS
from crucible_storage.clock import Clock, micros
from crucible_storage.database import Database
from crucible_storage.lifecycle import HELD
from crucible_storage.regularly import regularly
from crucible_storage.transaction import WriteTransaction

INTERVAL = 60.0
GRACE = timedelta(hours=1)
"""From DOOMED to the removal of the object."""

_AT_ONCE = 100
_GIVEN_UP = timedelta(seconds=2 * UPLOAD_SECONDS)
_BLOB, _ARTIFACT, _EVALUATION = models.blob.c, models.artifact.c, models.evaluation.c
_OUTPUT = models.large_output.c
_GIVE_UP = (
    update(models.blob)
    .where(_BLOB.state == UPLOADING, _BLOB.time < bindparam("before"))
    .values(state=DOOMED, time=bindparam("now"))
)
# Of an attempt that ended without a record that lists them.
_NEVER_CONFIRMED = (
    select(_ARTIFACT.evaluation_seq, _ARTIFACT.attempt, _ARTIFACT.path, _ARTIFACT.blob_seq)
    .select_from(models.artifact.join(models.evaluation, _EVALUATION.seq == _ARTIFACT.evaluation_seq))
    .where(
        _ARTIFACT.confirmed == 0,
        or_(_EVALUATION.state.not_in(sorted(HELD)), _EVALUATION.attempt != _ARTIFACT.attempt),
    )
    .limit(_AT_ONCE)
)
_DROP = delete(models.artifact).where(
    _ARTIFACT.evaluation_seq == bindparam("seq"),
    _ARTIFACT.attempt == bindparam("attempt_"),
    _ARTIFACT.path == bindparam("path_"),
    _ARTIFACT.confirmed == 0,
)
_RELEASE = update(models.blob).where(_BLOB.seq == bindparam("key")).values(released=1)
_RELEASED = (
    select(_BLOB.seq)
    .where(_BLOB.state == PRESENT, _BLOB.released == 1)
    .order_by(_BLOB.seq)
    .limit(_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_REFERRED = select(
    or_(exists().where(_ARTIFACT.blob_seq == bindparam("key")), exists().where(_OUTPUT.blob_seq == bindparam("key")))
)
_DOOM = update(models.blob).where(_BLOB.seq == bindparam("key")).values(state=DOOMED, time=bindparam("now"))
_KEEP = update(models.blob).where(_BLOB.seq == bindparam("key")).values(released=0)
_DOOMED = (
    select(_BLOB.seq, _BLOB.name)
    .where(_BLOB.state == DOOMED, _BLOB.time <= bindparam("before"))
    .order_by(_BLOB.seq)
    .limit(_AT_ONCE)
)
_FORGET = delete(models.blob).where(_BLOB.seq == bindparam("key"), _BLOB.state == DOOMED)
_LOG = logging.getLogger(__name__)


class Collector:
    """Looks once a minute.

    Args:
        database: where the rows are.
        store: where the objects are.
        clock: says what is old.
        grace: see `GRACE`.
    """

    def __init__(self, database: Database, store: BlobStore, clock: Clock, grace: timedelta = GRACE) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        self._grace = grace

    async def run(self) -> None:
        """Collects until cancelled."""
        await regularly(INTERVAL, self.look, "artifacts that nobody needs could not be removed")

    async def look(self) -> int:
        """Removes what can go now; answers how many objects.

        Raises:
            UnavailableError: the store or the database cannot be used now.
        """
        while await self._database.write(self._drop_never_confirmed) == _AT_ONCE:
            pass
        while await self._database.write(self._doom) == _AT_ONCE:
            pass
        removed = 0
        while found := await self._doomed():
            for seq, name in found:
                await self._store.delete(name)
                await self._database.write(
                    lambda transaction, seq=seq: transaction.execute(_FORGET, {"key": seq}).rowcount  # type: ignore[misc]
                )
                removed += 1
        return removed

    def _drop_never_confirmed(self, transaction: WriteTransaction) -> int:
        found = transaction.execute(_NEVER_CONFIRMED).fetchall()
        for row in found:
            key = {"seq": row.evaluation_seq, "attempt_": row.attempt, "path_": row.path}
            if transaction.execute(_DROP, key).rowcount:
                transaction.execute(_RELEASE, {"key": row.blob_seq})
        return len(found)

    def _doom(self, transaction: WriteTransaction) -> int:
        now = self._clock.now()
        transaction.execute(_GIVE_UP, {"before": now - micros(_GIVEN_UP), "now": now})
        released = [row[0] for row in transaction.execute(_RELEASED)]
        for seq in released:
            if transaction.execute(_REFERRED, {"key": seq}).scalar_one():
                transaction.execute(_KEEP, {"key": seq})
            else:
                transaction.execute(_DOOM, {"key": seq, "now": now})
        return len(released)

    async def _doomed(self) -> list[tuple[int, str]]:
        before = self._clock.now() - micros(self._grace)
        rows = await self._database.read(lambda connection: connection.execute(_DOOMED, {"before": before}).fetchall())
        return [(row[0], row[1]) for row in rows]
