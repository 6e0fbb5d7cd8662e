"""The journal: durable before anybody is told, whole after any crash, never guessing."""

import asyncio

import pytest

from crucible_executor.journal import Journal, JournalError, JournalFullError, Kind


def reopened(path, **options):
    return Journal.open(path, **options)


async def written(path, *run_ids):
    journal = Journal.open(path)
    for run_id in run_ids:
        await journal.append(Kind.ACCEPTED, run_id, draft=run_id)
    await journal.close()


async def test_what_was_appended_is_there_after_a_restart_in_order(tmp_path):
    path = tmp_path / "journal"
    await written(path, "c", "a", "b")
    journal = reopened(path)
    await journal.append(Kind.FINISHED, "a", record="r")
    await journal.append(Kind.ACKNOWLEDGED, "b")
    await journal.close()
    replayed = reopened(path).replayed
    assert [(entry.run_id, entry.kind) for entry in replayed.values()] == [
        ("c", Kind.ACCEPTED),
        ("a", Kind.FINISHED),
    ]
    assert replayed["a"].fields == {"record": "r"}


@pytest.mark.parametrize("keep", [0, 1, 9, 30])
async def test_torn_last_line_is_cut_off(tmp_path, keep):
    path = tmp_path / "journal"
    await written(path, "a", "b")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:keep])
    journal = reopened(path)
    assert list(journal.replayed) == ["a"]
    await journal.append(Kind.ACCEPTED, "c")
    await journal.close()
    assert list(reopened(path).replayed) == ["a", "c"]


async def test_last_line_of_zeros_is_cut_off(tmp_path):
    path = tmp_path / "journal"
    await written(path, "a")
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert list(reopened(path).replayed) == ["a"]


async def test_damage_in_the_middle_is_refused_with_the_line(tmp_path):
    path = tmp_path / "journal"
    await written(path, "a", "b", "c")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"b"', b'"x"')
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=r"line 3 .* is damaged"):
        reopened(path)


async def test_file_that_is_no_journal_is_refused(tmp_path):
    path = tmp_path / "journal"
    path.write_bytes(b'%08x {"format":"other"}\n' % 0x1)
    await written(tmp_path / "real", "a")
    path.write_bytes(b"".join((tmp_path / "real").read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(JournalError, match="not a journal of this version"):
        reopened(path)


async def test_many_appends_at_once_share_fsyncs(tmp_path, monkeypatch):
    import os
    import time

    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (time.sleep(0.02), fdatasync(fd)))  # a slow disk
    journal = Journal.open(tmp_path / "journal")
    await asyncio.gather(*(journal.append(Kind.ACCEPTED, f"run-{n}") for n in range(200)))
    assert journal.fsyncs < 10
    await journal.close()
    assert len(reopened(tmp_path / "journal").replayed) == 200


async def test_mostly_acknowledged_journal_is_compacted_and_loses_nothing(tmp_path):
    path = tmp_path / "journal"
    journal = Journal.open(path, compact_bytes=10_000)
    await journal.append(Kind.ACCEPTED, "stays", draft="d" * 50)
    for n in range(400):
        await journal.append(Kind.ACCEPTED, f"run-{n}", draft="d" * 100)
        journal.append_lazily(Kind.ACKNOWLEDGED, f"run-{n}")
    await journal.append(Kind.REFUSED, "tombstone")
    assert path.stat().st_size < 12_000
    await journal.close()
    assert list(reopened(path).replayed) == ["stays", "tombstone"]


async def test_compaction_without_room_changes_nothing(tmp_path, monkeypatch):
    import os

    path = tmp_path / "journal"
    journal = Journal.open(path, compact_bytes=2_000)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # of the new file; entries use fdatasync
    for n in range(50):
        await journal.append(Kind.ACCEPTED, f"run-{n}", draft="d" * 100)
        journal.append_lazily(Kind.ACKNOWLEDGED, f"run-{n}")
    monkeypatch.undo()
    await journal.append(Kind.ACCEPTED, "last")
    assert not path.with_name("journal.new").exists()
    await journal.close()
    assert list(reopened(path).replayed) == ["last"]


async def test_entry_without_room_is_refused_and_the_next_one_is_fine(tmp_path, monkeypatch):
    import os

    path = tmp_path / "journal"
    journal = Journal.open(path)
    write = os.write

    def half(fd, data):
        if len(data) > 1000:
            write(fd, bytes(data[:100]))
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(JournalFullError, match="No space left"):
        await journal.append(Kind.ACCEPTED, "large", draft="d" * 2000)
    await journal.append(Kind.ACCEPTED, "small")
    await journal.close()
    assert list(reopened(path).replayed) == ["small"]


async def test_lazy_entries_that_shared_a_write_without_room_come_with_the_next_one_in_order(tmp_path, monkeypatch):
    import os

    path = tmp_path / "journal"
    journal = Journal.open(path)
    for run_id in ("a", "b", "c"):
        await journal.append(Kind.ACCEPTED, run_id)
    write = os.write

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for run_id in ("a", "b"):
        journal.append_lazily(Kind.ACKNOWLEDGED, run_id)
        with pytest.raises(JournalFullError):
            await journal.append(Kind.ACCEPTED, "refused")
    journal.append_lazily(Kind.ACKNOWLEDGED, "c")
    monkeypatch.setattr(os, "write", write)
    await journal.append(Kind.ACCEPTED, "d")
    lines = path.read_text().splitlines()[-4:]
    assert [line.partition('"run":"')[2][0] for line in lines] == ["a", "b", "c", "d"]
    await journal.close()
    assert list(reopened(path).replayed) == ["d"]


async def test_failed_fsync_ends_the_process(tmp_path, monkeypatch):
    import os

    broken = []
    journal = Journal.open(tmp_path / "journal", on_broken=broken.append)

    def fails(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(JournalFullError):
        await journal.append(Kind.ACCEPTED, "a")
    assert [error.errno for error in broken] == [5]
