"""What a program leaves in /workspace/out comes out as it was, bounded, and nothing else ever does."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import pytest

from crucible_executor.engines.base import Engine
from crucible_executor.model import Artifact, Exited, Killed, Limit, LimitExceeded, Signalled
from crucible_executor.spool import Spool
from tests.conformance.harness import Recorder, Result, limits, processes_of, python, run, sandbox_class
from tests.conformance.promises import needs, only

pytestmark = pytest.mark.slow

WANTED = limits(artifact_bytes=4 << 20)
MIB = 1 << 20
_SAME = "The init's own code does it, the same on every engine."


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "files"


def contents(result: Result, files: Path) -> dict[str, bytes]:
    """Every file that was kept; its digest is of these bytes."""
    found = {file.path: _content(file, files) for file in result.outcome.artifacts.files}
    for file in result.outcome.artifacts.files:
        assert file.sha256 == hashlib.sha256(found[file.path]).digest()
    return found


def _content(file: Artifact, files: Path) -> bytes:
    return Spool.of_file(files).read(file.offset, file.bytes_kept) if file.bytes_kept else b""


async def test_files_come_out_byte_for_byte(engine: Engine, files: Path):
    code = (
        "import os\n"
        "os.makedirs('out/a/b'); os.makedirs('out/nothing/in/here')\n"
        "open('out/result.json', 'w').write('{\"score\": 1}')\n"
        "open('out/a/b/data', 'wb').write(bytes(range(256)) * 4000)\n"
        "open('out/empty', 'w'); open('beside', 'w').write('not mine'); open('/tmp/other', 'w').write('nor mine')\n"
        "os.link('out/empty', 'out/same'); print('done')\n"
    )
    result = await run(engine, python(code), WANTED, files)
    assert result.termination == Exited(0)
    assert result.stdout == b"done\n"
    expected = {"a/b/data": bytes(range(256)) * 4000, "empty": b"", "result.json": b'{"score": 1}', "same": b""}
    assert contents(result, files) == expected
    assert list(contents(result, files)) == list(expected)  # sorted
    assert (result.outcome.artifacts.omitted, result.outcome.artifacts.not_collected) == (0, "")


async def test_files_come_out_however_the_program_ends_by_itself(engine: Engine, files: Path):
    for end, how in (("sys.exit(7)", Exited(7)), ("os.kill(os.getpid(), 11)", Signalled(11))):
        code = f"import os, sys\nos.mkdir('out')\nopen('out/x', 'w').write('kept')\n{end}\n"
        result = await run(engine, python(code), WANTED, files)
        assert result.termination == how
        assert contents(result, files) == {"x": b"kept"}


async def test_links_pipes_and_sockets_do_not_come_out(engine: Engine, files: Path):
    code = (
        "import os, socket\n"
        "os.makedirs('out/dir')\n"
        "os.symlink('/etc/passwd', 'out/link'); os.symlink('/', 'out/root'); os.symlink('.', 'out/dir/loop')\n"
        "os.mkfifo('out/fifo'); socket.socket(socket.AF_UNIX).bind('out/socket')\n"
        "for make in (lambda: os.mknod('out/null', 0o20666, 0x103), lambda: os.mknod('out/disk', 0o60666, 0x800)):\n"
        "    try: make(); print('a device')\n"
        "    except OSError: pass\n"
        "open('out/file', 'w').write('mine')\n"
    )
    result = await run(engine, python(code), WANTED, files)
    assert contents(result, files) == {"file": b"mine"}
    assert result.outcome.artifacts.omitted == 5 + result.stdout.count(b"a device")


@only("gvisor", "docker", "subprocess", why=_SAME)
@pytest.mark.parametrize("what", ["os.symlink('/etc', 'out')", "open('out', 'w').write('x')", "os.mkfifo('out')"])
async def test_an_out_that_is_no_folder_is_not_followed(engine: Engine, files: Path, what: str):
    result = await run(engine, python(f"import os\n{what}\n"), WANTED, files)
    assert result.termination == Exited(0)
    assert contents(result, files) == {}
    assert result.outcome.artifacts.omitted == 1


async def test_names_of_any_bytes_are_text_or_omitted(engine: Engine, files: Path):
    good = ["new\nline", "\x1b[31mred", "..x", " ", "ü€😀", "a\\b", "-rf", "%s%n"]
    code = (
        "import os\n"
        "os.mkdir('out')\n"
        f"for name in {good!r}: open('out/' + name, 'w').write(name)\n"
        "for name in (b'\\xff', b'ok\\xc3', b'\\xed\\xa0\\x80'): open(b'out/' + name, 'w').write('x')\n"
        "os.makedirs('out/' + 'd' * 200 + '/' + 'e' * 200); open('out/' + 'd' * 200 + '/' + 'e' * 200 + '/f', 'w')\n"
    )
    result = await run(engine, python(code), WANTED, files)
    assert result.termination == Exited(0), result.stderr
    assert contents(result, files) == {name: name.encode() for name in sorted(good, key=str.encode)}
    assert result.outcome.artifacts.omitted >= 3


async def test_what_the_program_itself_cannot_read_does_not_come_out(engine: Engine, files: Path):
    code = (
        "import os\n"
        "os.makedirs('out/closed'); open('out/closed/x', 'w').write('x'); open('out/secret', 'w').write('y')\n"
        "open('out/open', 'w').write('z'); os.chmod('out/closed', 0); os.chmod('out/secret', 0)\n"
        "try: open('out/secret').read(); print('all is readable to me')\n"
        "except PermissionError: pass\n"
    )
    result = await run(engine, python(code), WANTED, files)
    if result.stdout:  # the unsafe engine runs it as the executor's own user, here root
        assert len(contents(result, files)) == 3
    else:
        assert contents(result, files) == {"open": b"z"}
        assert result.outcome.artifacts.omitted == 2


async def test_too_many_and_too_deep_files_are_omitted_and_counted(engine: Engine, files: Path):
    code = (
        "import os\n"
        "os.makedirs('out/' + 'd/' * 30); open('out/' + 'd/' * 30 + 'x', 'w'); open('out/' + 'd/' * 15 + 'x', 'w')\n"
        "os.mkdir('out/many')\n"
        "for n in range(400): open(f'out/many/{n}', 'w').write(str(n))\n"
    )
    result = await run(engine, python(code), WANTED, files)
    artifacts = result.outcome.artifacts
    assert len(artifacts.files) == 256
    assert 145 <= artifacts.omitted <= 147  # and what is too deep, once
    assert "d/" * 30 + "x" not in contents(result, files)
    assert all(
        one.path.endswith("x") or contents(result, files)[one.path] == one.path[5:].encode() for one in artifacts.files
    )


@only("gvisor", "subprocess", why=_SAME)
async def test_a_folder_of_endless_entries_ends(engine: Engine, files: Path):
    code = "import os\nos.mkdir('out')\nfor n in range(10100): os.mkdir(f'out/{n}')\n"
    result = await run(engine, python(code), limits(artifact_bytes=4 << 20, disk_bytes=64 * MIB), files)
    assert result.termination == Exited(0)
    assert "more files and folders" in result.outcome.artifacts.not_collected


async def test_large_files_are_cut_at_the_limit_and_say_so(engine: Engine, files: Path):
    code = (
        "import os\n"
        "os.mkdir('out')\n"
        "open('out/big', 'wb').write(b'x' * (6 << 20))\n"
        "os.truncate(os.open('out/sparse', os.O_CREAT | os.O_RDWR), 1 << 40)\n"
    )
    result = await run(engine, python(code), WANTED, files)
    assert result.termination == Exited(0)
    listed = {file.path: file for file in result.outcome.artifacts.files}
    assert {path: file.bytes_total for path, file in listed.items()} == {"big": 6 * MIB, "sparse": 1 << 40}
    assert sum(file.bytes_kept for file in listed.values()) == Spool.of_file(files).size == 4 * MIB
    assert contents(result, files)["big"].strip(b"x") == contents(result, files)["sparse"].strip(b"\0") == b""


async def test_files_that_somebody_goes_on_writing_are_whole_when_they_are_read(engine: Engine, files: Path):
    code = (
        "import os, time\n"
        "os.mkdir('out')\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True:\n"
        "        for n in range(50):\n"
        "            with open(f'out/.{n}', 'w') as file: file.write('x' * 5000)\n"
        "            os.rename(f'out/.{n}', f'out/{n}')\n"
        "while not os.path.exists('out/49'): time.sleep(0.01)\n"
    )
    result = await run(engine, python(code), WANTED, files)
    assert result.termination == Exited(0)
    kept = contents(result, files)
    assert all(kept[str(n)] == b"x" * 5000 for n in range(50))


async def test_nothing_is_looked_at_unless_it_is_asked_for(engine: Engine, files: Path):
    code = "import os\nos.mkdir('out')\nopen('out/x', 'w').write('x')\n"
    result = await run(engine, python(code), limits(), files)
    assert result.termination == Exited(0)
    assert result.outcome.artifacts.files == ()
    assert result.outcome.artifacts.not_collected == "nobody asked for the program's files"
    assert result.sink.spools == 0


@needs(Limit.WALL_TIME)
async def test_files_of_a_program_out_of_time_come_out_and_it_ends_within_a_second(engine: Engine, files: Path):
    code = (
        "import os, signal\n"
        "os.mkdir('out')\n"
        "open('out/so far', 'w').write('half')\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0: os.setsid()\n"
        "while True: pass\n"
    )
    bounds = limits(artifact_bytes=4 << 20, wall_time=limits().wall_time / 20)
    sandbox = await engine.create(sandbox_class(bounds))
    try:
        began = time.monotonic()
        outcome = await sandbox.start(python(code), bounds, sink := Recorder(files=files))
        took = time.monotonic() - began
        assert isinstance(outcome.termination, LimitExceeded)
        assert processes_of(sandbox) == []
        assert took < bounds.wall_time.total_seconds() + 1
        assert contents(Result(outcome, sink), files) == {"so far": b"half"}
    finally:
        await sandbox.destroy()


async def test_a_program_that_is_killed_leaves_nothing_and_the_outcome_says_so(engine: Engine, files: Path):
    code = "import os, time\nos.mkdir('out')\nopen('out/x', 'w').write('x')\nprint('up', flush=True)\ntime.sleep(60)\n"
    sandbox = await engine.create(sandbox_class(WANTED))
    try:
        running = asyncio.create_task(sandbox.start(python(code), WANTED, sink := Recorder(files=files)))
        await sink.until_printed(b"up\n")
        began = time.monotonic()
        await sandbox.kill()
        assert time.monotonic() - began < 1
        outcome = await running
        assert outcome.termination == Killed()
        assert outcome.artifacts.files == ()
        assert "ended from outside" in outcome.artifacts.not_collected
    finally:
        await sandbox.destroy()


async def test_kill_does_not_wait_for_files(engine: Engine, files: Path):
    """The program is over, and its files are being read when the kill comes."""
    code = "import os\nos.mkdir('out')\nfor n in range(200): open(f'out/{n}', 'wb').write(b'x' * 300000)\n"
    bounds = limits(artifact_bytes=1 << 30, disk_bytes=80 * MIB, memory_bytes=256 * MIB)
    sandbox = await engine.create(sandbox_class(bounds))
    try:
        sink = _Watched(files)
        running = asyncio.create_task(sandbox.start(python(code), bounds, sink))
        await asyncio.wait_for(sink.collecting.wait(), 30)
        began = time.monotonic()
        await sandbox.kill()
        assert processes_of(sandbox) == []
        assert time.monotonic() - began < 1
        outcome = await running
        assert outcome.termination in (Killed(), Exited(0))  # it may just have ended
    finally:
        await sandbox.destroy()


class _Watched(Recorder):
    """Tells when files begin to come."""

    def __init__(self, files: Path) -> None:
        super().__init__(files=files)
        self.collecting = asyncio.Event()

    def spool(self) -> Spool:
        self.collecting.set()
        return super().spool()
