"""The journal's self-test: on the state folder's own disk, in a file of its own."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from crucible_executor.journal import Journal, JournalFullError, Kind
from crucible_executor.selftest.model import Check, CheckFailedError, expect

_TORN = b'00000000 {"kind":"acc'


def checks(state_dir: Path) -> tuple[Check, ...]:
    """The checks of the journal.

    Args:
        state_dir: the folder that holds the real one.
    """

    async def survives() -> str:
        folder = state_dir / "selftest-journal"
        shutil.rmtree(folder, ignore_errors=True)  # of an executor that ended meanwhile
        folder.mkdir(mode=0o700)
        try:
            return await _survives(folder / "journal")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return (Check("journal", "what was written is read again after a crash", survives),)


async def _survives(file: Path) -> str:
    broken: list[OSError] = []
    journal = Journal.open(file, on_broken=broken.append)
    try:
        began = time.monotonic()
        for kind, run in ((Kind.ACCEPTED, "a"), (Kind.ACCEPTED, "b"), (Kind.FINISHED, "a")):
            await journal.append(kind, run, number=1)
        seconds, syncs = time.monotonic() - began, journal.fsyncs
    except JournalFullError as error:
        raise CheckFailedError(str(error)) from error
    finally:
        await journal.close()
    expect(not broken and syncs > 0, f"{syncs} fsyncs, {broken}")
    with file.open("ab") as torn:
        torn.write(_TORN)
    again = await asyncio.to_thread(Journal.open, file)
    found = {run: entry.kind for run, entry in again.replayed.items()}
    await again.close()
    expect(found == {"a": Kind.FINISHED, "b": Kind.ACCEPTED}, f"read again: {found}")
    return f"3 entries on disk with {syncs} fsyncs in {seconds * 1000:.1f} ms, all read again behind a torn line"
