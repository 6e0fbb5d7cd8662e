"""The operator's commands. Each works on the state folder when storage is stopped, or asks the storage that runs."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

from sqlalchemy.engine import Connection

from crucible_rpc.errors import StartError
from crucible_rpc.signing import Verifier
from crucible_storage import artifacts, state
from crucible_storage.artifacts.blob_store import BlobStore
from crucible_storage.clock import Clock
from crucible_storage.databases.base import Backend
from crucible_storage.integrity import objects
from crucible_storage.integrity.check import Verdict, check
from crucible_storage.integrity.findings import MAX_SHOWN, Progress
from crucible_storage.maintenance import archive, lock, server, sqlite_file, usage
from crucible_storage.maintenance.archive import Manifest
from crucible_storage.maintenance.live import LiveDatabase
from crucible_storage.maintenance.peer import Peer
from crucible_storage.migrations import HEAD

_CHECKED = "check.partial"
_RESTORED = "restore.partial"

Tell = Callable[[Progress], None]


class Commands:
    """The commands over one state folder.

    Args:
        folder: the state folder.
        verifier: knows the executors' keys.
        peer: the storage that runs, if one does.
        clock: says when a backup was made.
        shared: the database server, when storage is on one; then it does not matter whether storage runs.
        blobs: the artifact store; None: the one in the state folder.
    """

    def __init__(
        self,
        folder: Path,
        verifier: Verifier,
        peer: Peer,
        clock: Clock,
        shared: Backend | None = None,
        blobs: BlobStore | None = None,
    ) -> None:
        self._folder = folder
        self._file = folder / state.FILE
        self._verifier = verifier
        self._peer = peer
        self._clock = clock
        self._shared = shared
        self._blobs = blobs

    def migrate(self) -> tuple[str, str]:
        """Brings the database of a stopped storage to this version's schema; answers the revisions before and after.

        Raises:
            StartError: storage runs, or the database cannot be used or is of a later version.
        """
        if self._shared is not None:
            before = server.revision(self._shared)
            state.prepare(self._shared)
            return before, HEAD
        with lock.needs_stopped(self._folder, "migrating"):
            self._check_there()
            before = sqlite_file.revision(self._file)
            sqlite_file.migrate(self._file)
        return before, HEAD

    async def check(self, limit: int, tell: Tell, *, digests: bool = False) -> Verdict:
        """Proves the database: that of a stopped storage itself, or a copy of that of one that runs.

        And that the artifact store has what the database refers to; with `digests`, each byte of it.

        Raises:
            StartError: it cannot be read, or has another schema.
            UnavailableError: the artifact store cannot be used now.
        """
        if self._shared is not None:
            with server.reading(self._shared) as connection:
                return await self._proved(connection, limit, tell, digests)
        with lock.stopped(self._folder) as alone:
            if alone:
                self._check_there()
                with sqlite_file.read_only(self._file) as connection:
                    return await self._proved(connection, limit, tell, digests)
        partial = self._fresh(_CHECKED)
        try:
            async with self._peer.copy() as copy:
                with partial.open("xb") as out:
                    async for part in copy.parts:
                        out.write(part)
            with sqlite_file.read_only(partial) as connection:
                return await self._proved(connection, limit, tell, digests)
        finally:
            partial.unlink(missing_ok=True)

    def check_backup(self, source: IO[bytes], limit: int, tell: Tell) -> tuple[Manifest, Verdict]:
        """Proves a backup; needs as much free disk in the state folder as its database has.

        Raises:
            StartError: it is no backup, is damaged, or its database has another schema.
        """
        partial = self._fresh(_CHECKED)
        try:
            manifest = archive.extract(source, partial)
            return manifest, self._checked(partial, limit, tell)
        finally:
            partial.unlink(missing_ok=True)

    async def backup(self, out: IO[bytes]) -> Manifest:
        """Writes a backup, also while storage runs.

        Raises:
            StartError: the database cannot be read, or storage refused.
        """
        if self._shared is not None:
            raise StartError(server.NO_BACKUP)
        with lock.stopped(self._folder) as alone:
            if alone:
                self._check_there()
                return await self._backup_stopped(out)
        async with self._peer.copy() as copy:
            writer = archive.Writer(out, copy.size, copy.time)
            async for part in copy.parts:
                writer.write(part)
            return writer.finish(copy.revision, copy.last_position)

    def restore(self, source: IO[bytes], tell: Tell) -> tuple[Manifest, Verdict]:
        """Makes a backup the database of a stopped storage that has none: proved first, then put in place at once.

        A backup of an earlier version is migrated on the way.

        Raises:
            StartError: storage runs, there is a database already, or the backup cannot be used.
        """
        if self._shared is not None:
            raise StartError(server.NO_BACKUP)
        with lock.needs_stopped(self._folder, "restoring"):
            there = sorted(path.name for path in self._folder.glob(f"{state.FILE}*"))
            if there:
                text = f"{self._folder} has a database already ({', '.join(there)}); move it away first"
                raise StartError(text)
            partial = self._fresh(_RESTORED)
            try:
                manifest = archive.extract(source, partial)
                sqlite_file.migrate(partial)
                verdict = self._checked(partial, MAX_SHOWN, tell)
                if verdict.whole:
                    sqlite_file.sync(partial)
                    partial.rename(self._file)
                    sqlite_file.sync(self._folder)
                return manifest, verdict
            finally:
                self._remove(_RESTORED)

    async def usage(self) -> usage.Usage:
        """Where the bytes are.

        Raises:
            StartError: the database cannot be read.
        """
        if self._shared is not None:
            with server.reading(self._shared) as connection:
                return usage.of_server(connection)
        with lock.stopped(self._folder) as alone:
            if alone:
                self._check_there()
                with sqlite_file.read_only(self._file) as connection:
                    return usage.of(connection, self._file)
        return await self._peer.usage()

    async def _backup_stopped(self, out: IO[bytes]) -> Manifest:
        sqlite_file.revision(self._file)  # what cannot be read is said more kindly here
        async with LiveDatabase(self._file, self._clock).copy() as copy:
            writer = archive.Writer(out, copy.size, copy.time)
            while part := copy.stream.read(archive.PART):
                writer.write(part)
            return writer.finish(copy.revision, copy.last_position)

    def _checked(self, file: Path, limit: int, tell: Tell) -> Verdict:
        with sqlite_file.read_only(file) as connection:
            return check(connection, self._verifier, limit=limit, tell=tell)

    async def _proved(self, connection: Connection, limit: int, tell: Tell, digests: bool) -> Verdict:
        verdict, begun = check(connection, self._verifier, limit=limit, tell=tell), time.monotonic()
        blobs = artifacts.choose(None, None, self._folder) if self._blobs is None else self._blobs
        await objects.check(connection, blobs, verdict.findings, verdict.progress, digests=digests)
        return replace(verdict, seconds=verdict.seconds + time.monotonic() - begun)

    def _check_there(self) -> None:
        if not self._file.is_file():
            raise StartError(f"there is no database {self._file}; storage makes it at its first start")

    def _fresh(self, name: str) -> Path:
        """The path of a file of our own; what a killed command left there is removed."""
        if not self._folder.is_dir():
            raise StartError(f"there is no state folder {self._folder}; storage makes it at its first start")
        self._remove(name)
        return self._folder / name

    def _remove(self, name: str) -> None:
        for path in self._folder.glob(f"{name}*"):
            path.unlink()
