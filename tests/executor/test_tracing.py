"""What programs in real sandboxes try, as the reader of traces reports it; and a reader that is attacked or dies."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pwd
import random
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from crucible_executor import cgroups, composition
from crucible_executor.behaviour import MAX_EXAMPLES, MAX_TOLD, Action, Behaviour, Observation, Update
from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.engines.gvisor import GvisorEngine, GvisorPaths, GvisorSandbox
from crucible_executor.images import ImageStore
from crucible_executor.metrics import PoolMetrics
from crucible_executor.model import Exited, Interpreter, Killed, Outcome, SandboxClass, StartKind
from crucible_executor.settings import Settings
from crucible_executor.tracing import trace as traces
from crucible_executor.tracing import tracer as tracing
from crucible_executor.tracing.reader import NUMBER_BYTES
from crucible_executor.tracing.trace import Trace
from crucible_executor.tracing.tracer import Tracer, TracerPaths
from tests.conformance import harness, warm
from tests.conformance.harness import eventually
from tests.executor import trace_messages as tm

pytestmark = pytest.mark.root

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]
READER = "daemon"  # any user but root; `crucible up` makes one of its own
QUIET = "print(sum(range(10)))"
WAITS = "import sys\nprint('up', flush=True)\nsys.stdin.read()\nimport time\ntime.sleep(60)"


@pytest.fixture(scope="module")
def init_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = subprocess.run(
        [ROOT / "executor/init/build.sh", tmp_path_factory.mktemp("init")], check=True, capture_output=True, text=True
    )
    return Path(built.stdout.strip())


@dataclass
class Host:
    tracer: Tracer
    engine: GvisorEngine
    folder: Path

    async def tried(self, code: str, **changed: object) -> Behaviour:
        result = await harness.run(self.engine, harness.python(code), harness.limits(**changed))
        assert result.termination == Exited(0), result.stderr
        assert result.outcome.behaviour is not None
        return result.outcome.behaviour


@pytest.fixture
async def host(init_dir: Path) -> AsyncIterator[Host]:
    name = f"crucible-test-{uuid.uuid4().hex[:12]}"
    run_dir = Path("/dev/shm") / name
    launcher = init_dir / "crucible-launch"
    tree, tracer = cgroups.detect(name), Tracer(TracerPaths(launcher, READER), cgroups.detect(f"{name}-trace"))
    runsc = sorted((CACHE / "runsc").glob("*/runsc"))[-1]
    paths = GvisorPaths(runsc, init_dir / "crucible-init", launcher, run_dir)
    engine = GvisorEngine(paths, ImageStore(CACHE / "images"), tree, tracer)
    yield Host(tracer, engine, run_dir)
    await tracer.close()
    assert await engine.sweep() == 0
    assert cgroups_named(f"{name}-trace") == []
    tree.discard()
    for folder in (run_dir / "empty", run_dir):
        if folder.exists():
            folder.rmdir()


def counts(told: Behaviour) -> dict[str, int]:
    return {action.value: kind.count for action, kind in told.actions.items() if kind.count}


async def test_quiet_program_was_observed_and_tried_nothing(host: Host):
    told = await host.tried(QUIET)
    assert (told.observation, told.dropped, told.reason) == (Observation.OBSERVED, 0, "")
    assert set(told.actions) == set(Action)
    assert counts(told) == {}


TRIES = """
import ctypes, os, socket, subprocess
libc = ctypes.CDLL(None)
for name in ("/tmp/a", "/tmp/b", "c"):
    open(name, "w").close()
for path in ("/etc/shadow", "/proc/1/environ", "/sys/kernel/notes"):
    try:
        open(path)
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", 1))
except OSError:
    pass
try:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
except OSError:
    pass
if os.fork() == 0:
    os._exit(0)
os.wait()
subprocess.run(["/bin/echo", "it ran"], check=True)
libc.ptrace(0, 0, 0, 0)
libc.mount(b"none", b"/tmp", b"tmpfs", 0, 0)
libc.unshare(0x04000000)  # CLONE_NEWUTS
libc.unshare(0x10000000)  # CLONE_NEWUSER, which the init's filter refuses before it is traced
for number in (321, 313, 175):
    libc.syscall(number, 0, 0, 0)
try:
    os.setuid(0)
except OSError:
    pass
"""


async def test_what_a_program_tries_appears_with_its_count(host: Host):
    told = await host.tried(TRIES)
    assert told.observation is Observation.OBSERVED
    seen = {action.value: kind.examples for action, kind in told.actions.items()}
    assert seen["programs"] == ("/usr/bin/echo it ran",)
    assert seen["files_written"] == ("/tmp/a", "/tmp/b", "/workspace/c")
    assert seen["probes"] == ("/etc/shadow", "/proc/1/environ", "/sys/kernel/notes")
    assert seen["sockets"] == ("AF_INET SOCK_STREAM", "AF_INET SOCK_RAW")
    assert seen["connections"] == ("127.0.0.1:1",)
    assert [one.split("(")[0] for one in seen["privilege"]] == [
        "raw socket AF_INET SOCK_RAW", "ptrace", "mount", "unshare", "bpf", "finit_module", "init_module", "setuid",
    ]  # fmt: skip
    assert counts(told) == {
        "programs": 1, "files_written": 3, "probes": 3, "sockets": 2, "connections": 1, "processes": 2, "privilege": 8,
    }  # fmt: skip
    assert all(kind.first is not None for kind in told.actions.values())


UNSPEAKABLE = """
import os
os.mkdir(b"/tmp/\\xff")
os.chdir(b"/tmp/\\xff")
for name in ("/tmp/a", "/tmp/b", "c"):
    open(name, "w").close()
os.chdir("/tmp")
if os.fork() == 0:
    os.execv("/bin/true", [b"/bin/true", b"\\xfe"])
os.wait()
"""


async def test_what_has_a_name_that_is_no_utf_8_makes_the_trace_partial(host: Host):
    # This kernel sends nothing of such a call and counts nothing: a folder's name would else hide all that is opened.
    told = await host.tried(UNSPEAKABLE)
    assert told.observation is Observation.PARTIAL
    assert told.dropped >= 4
    assert counts(told) == {"processes": 1}


async def test_process_whose_name_is_no_utf_8_is_counted(host: Host):
    told = await host.tried(
        "import ctypes, os\nctypes.CDLL(None).prctl(15, b'\\xff')\nif os.fork() == 0: os._exit(0)\nos.wait()"
    )
    assert (told.observation, counts(told)) == (Observation.OBSERVED, {"processes": 1})


async def test_program_that_opens_very_many_files_is_told_in_bounds(host: Host):
    code = "for n in range(20000):\n    open(f'/tmp/{n % 500}', 'w').close()"
    told = await host.tried(code, wall_time=harness.LIMITS.wall_time * 3)
    written = told.actions[Action.FILES_WRITTEN]
    assert written.count + told.dropped >= 20_000
    assert written.count > 15_000
    assert len(written.examples) == MAX_EXAMPLES
    assert resident_bytes(host.tracer.reader_pid) < 64 << 20


async def test_reader_has_its_own_user_and_no_privilege(host: Host):
    await host.tried(QUIET)
    status, account = status_of(host.tracer.reader_pid), pwd.getpwnam(READER)
    assert status["Uid"].split() == [str(account.pw_uid)] * 4
    assert status["Gid"].split() == [str(account.pw_gid)] * 4
    assert status["Groups"].split() == []
    assert {int(status[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Inh", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert "-trace/reader" in of_process(host.tracer.reader_pid, "cgroup")
    assert of_process(host.tracer.reader_pid, "environ") == ""


async def test_run_whose_reader_is_killed_says_so_and_the_next_is_observed(host: Host):
    sandbox = await host.engine.create(harness.sandbox_class(harness.LIMITS))
    sink = harness.Recorder()
    running = asyncio.ensure_future(sandbox.start(harness.python(WAITS), harness.LIMITS, sink))
    await sink.until_printed(b"up")
    first = host.tracer.reader_pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: host.tracer.reader_pid is None)
    await sandbox.kill()
    outcome = await running
    await sandbox.destroy()
    assert outcome.termination == Killed()
    assert outcome.behaviour.observation is Observation.NOT_OBSERVED
    assert "died" in outcome.behaviour.reason
    assert not outcome.behaviour.actions

    assert (await host.tried(QUIET)).observation is Observation.OBSERVED
    assert host.tracer.reader_pid not in (None, first)


async def test_reader_that_hangs_is_ended_and_replaced(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(traces, "PATIENCE_S", 0.5)
    await host.tried(QUIET)
    hung = host.tracer.reader_pid
    os.kill(hung, signal.SIGSTOP)
    assert (await host.tried(QUIET)).observation is Observation.NOT_OBSERVED
    await eventually(lambda: host.tracer.reader_pid is None)
    assert (await host.tried(QUIET)).observation is Observation.OBSERVED


async def test_killed_run_tells_what_was_seen_until_then(host: Host):
    sandbox = await host.engine.create(harness.sandbox_class(harness.LIMITS))
    sink = harness.Recorder()
    running = asyncio.ensure_future(
        sandbox.start(harness.python("open('/tmp/x', 'w')\n" + WAITS), harness.LIMITS, sink)
    )
    await sink.until_printed(b"up")
    await sandbox.kill()
    told = (await running).behaviour
    await sandbox.destroy()
    assert told.observation is Observation.OBSERVED
    assert counts(told) == {"files_written": 1}


async def test_two_sandboxes_at_once_are_told_apart(host: Host):
    both = await asyncio.gather(host.tried("open('/tmp/one', 'w')"), host.tried("open('/tmp/two', 'w')"))
    assert [one.actions[Action.FILES_WRITTEN].examples for one in both] == [("/tmp/one",), ("/tmp/two",)]


async def test_program_cannot_reach_the_trace(host: Host):
    told = await host.tried("""
import os
for fd in os.listdir("/proc/self/fd"):
    assert "socket" not in os.readlink("/proc/self/fd/" + fd) if os.path.lexists("/proc/self/fd/" + fd) else True
assert not os.path.exists("/trace.sock")
""")
    assert told.observation is Observation.OBSERVED


async def test_without_a_user_for_the_reader_programs_run_and_say_that_nobody_watched(host: Host):
    host.tracer._paths = TracerPaths(host.tracer._paths.launcher, "crucible-nobody-of-that-name")
    told = await host.tried("open('/tmp/x', 'w')")
    assert told.observation is Observation.NOT_OBSERVED
    assert "there is no user crucible-nobody-of-that-name" in told.reason
    assert not told.actions


async def test_reader_that_keeps_dying_is_let_be(host: Host, tmp_path: Path):
    host.tracer._paths = TracerPaths(Path("/bin/false"), READER)
    reasons = []
    for _ in range(5):
        trace = host.tracer.open(tmp_path)
        reasons.append((await trace.behaviour()).reason)
        trace.close()
        await eventually(lambda: host.tracer.reader_pid is None)
        await asyncio.sleep(0)
    assert "keeps dying" in reasons[-1]


# While the program runs.


@dataclass
class Running:
    """A program under way in a sandbox of its own."""

    sandbox: GvisorSandbox
    sink: harness.Recorder
    outcome: asyncio.Future[Outcome]


@asynccontextmanager
async def under_way(host: Host, code: str, *, ahead: bool = False) -> AsyncIterator[Running]:
    """Starts it; it has not ended when the block is entered, and is killed at the latest when it is left."""
    sandbox = await (held(host, waits_for(code)) if ahead else host.engine.create(class_of()))
    if ahead:
        sandbox.take(class_of())
    sink = harness.Recorder()
    running = asyncio.ensure_future(sandbox.start(harness.python(code), harness.LIMITS, sink))
    try:
        yield Running(sandbox, sink, running)
    finally:
        await sandbox.kill()
        await running
        await sandbox.destroy()


@pytest.mark.parametrize("ahead", [False, True])
async def test_what_a_program_tries_is_told_before_it_ends(host: Host, ahead: bool):
    code = """
import socket, sys
for path in ("/etc/shadow", "/tmp/\\x1b[2J"):
    try:
        open(path, "w" if path.startswith("/tmp") else "r")
    except OSError:
        pass
try:
    socket.create_connection(("10.9.8.7", 80))
except OSError:
    pass
sys.stdin.read()
import time
time.sleep(60)
"""
    async with under_way(host, code, ahead=ahead) as program:
        shadow = await program.sink.until_told(Action.PROBES, "/etc/shadow")
        await program.sink.until_told(Action.CONNECTIONS, "10.9.8.7:80")
        await program.sink.until_told(Action.FILES_WRITTEN, r"/tmp/\x1b[2J")
        assert not program.outcome.done()
        assert shadow.count == 1
        assert timedelta(0) <= datetime.now(UTC) - shadow.time < timedelta(seconds=20)
        assert len(program.sink.updates) <= 3
        assert {one.observation for one in program.sink.updates} == {Observation.OBSERVED}


async def test_calls_that_the_kernel_cannot_tell_are_told_of_as_missing_before_the_program_ends(host: Host):
    async with under_way(host, UNSPEAKABLE + WAITS) as program:
        told = await program.sink.until_not_all_is_seen()
        assert (told.observation, "dropped" in told.reason) == (Observation.PARTIAL, True)
        assert not program.outcome.done()


async def test_quiet_program_is_told_of_in_no_update(host: Host):
    result = await harness.run(host.engine, harness.python(QUIET), harness.LIMITS)
    assert (result.termination, result.sink.updates) == (Exited(0), [])


async def test_short_program_is_told_of_at_its_end(host: Host):
    result = await harness.run(host.engine, harness.python("open('/tmp/x', 'w')"), harness.LIMITS)
    assert [one.example for update in result.sink.updates for one in update.sights] == ["/tmp/x"]


async def test_flood_is_told_in_few_updates_and_hides_no_other_kind(host: Host):
    code = """
import os
for n in range(100_000):
    try:
        os.open(f'/tmp/{n}/x', os.O_WRONLY)
    except OSError:
        pass
try:
    open('/etc/shadow')
except OSError:
    pass
"""
    limits = harness.limits(wall_time=harness.LIMITS.wall_time * 4)
    result = await harness.run(host.engine, harness.python(code), limits)
    assert result.termination == Exited(0)
    updates, told = result.sink.updates, result.outcome.behaviour
    sights = [one for update in updates for one in update.sights]
    assert told.actions[Action.FILES_WRITTEN].count + told.dropped >= 100_000
    assert sum(one.action is Action.FILES_WRITTEN for one in sights) == MAX_TOLD
    assert [update.exhausted for update in updates if update.exhausted] == [(Action.FILES_WRITTEN,)]
    assert told.actions[Action.PROBES].count == sum(one.example == "/etc/shadow" for one in sights)
    assert len(updates) <= 10


async def test_death_of_the_reader_is_told_before_the_program_ends(host: Host):
    async with under_way(host, WAITS) as program:
        await program.sink.until_printed(b"up")
        os.kill(host.tracer.reader_pid, signal.SIGKILL)
        assert (await program.sink.until_not_all_is_seen()).observation is Observation.NOT_OBSERVED
        assert not program.outcome.done()


async def test_reader_that_hangs_is_told_before_the_program_ends(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "_QUESTION_S", 0.1)
    monkeypatch.setattr(tracing, "_HUNG_S", 0.5)
    async with under_way(host, WAITS) as program:
        await program.sink.until_printed(b"up")
        await asyncio.sleep(1)  # it is asked some times, and answers
        assert program.sink.updates == []
        os.kill(host.tracer.reader_pid, signal.SIGSTOP)
        assert (await program.sink.until_not_all_is_seen()).observation is Observation.NOT_OBSERVED
        assert not program.outcome.done()


async def test_run_that_nobody_traces_is_told_so_at_its_start(host: Host):
    host.tracer._paths = TracerPaths(host.tracer._paths.launcher, "crucible-nobody-of-that-name")
    async with under_way(host, WAITS) as program:
        last = await program.sink.until_not_all_is_seen()
        assert (last.observation, len(program.sink.updates)) == (Observation.NOT_OBSERVED, 1)
        assert not program.outcome.done()


async def test_kernel_that_only_closes_its_trace_is_told_of_and_its_run_is_not_called_observed(
    host: Host, tmp_path: Path
):
    trace = host.tracer.open(tmp_path)
    told: list[Update] = []
    with await connected(trace, tmp_path) as peer:
        trace.begin(told.append)
        peer.send(tm.execve())
        peer.send(tm.opened(b"/etc/shadow"))
    await eventually(lambda: len(told) == 2)
    assert told[0].sights[0].example == "/etc/shadow"
    assert (told[1].observation, "before its run" in told[1].reason) == (Observation.PARTIAL, True)
    summary = await trace.behaviour()
    assert (summary.observation, summary.reason) == (Observation.PARTIAL, told[1].reason)
    assert counts(summary) == {"probes": 1}
    assert len(told) == 2
    trace.close()


async def test_reader_that_says_more_than_it_may_is_ended(host: Host, tmp_path: Path):
    trace = host.tracer.open(tmp_path)
    told: list[Update] = []
    with await connected(trace, tmp_path):
        trace.begin(told.append)
        host.tracer._may_say = 3
        for _ in range(3):  # as one would that was taken over
            host.tracer._control.send(bytes(NUMBER_BYTES))
        host.tracer._control.send(bytes(NUMBER_BYTES))
        await eventually(lambda: host.tracer.reader_pid is None)
    assert [one.observation for one in told] == [Observation.NOT_OBSERVED]
    assert (await trace.behaviour()).observation is Observation.NOT_OBSERVED
    trace.close()


def class_of() -> SandboxClass:
    return harness.sandbox_class(harness.LIMITS)


# Sandboxes booted ahead.


async def held(host: Host, interpreter: Interpreter | None) -> GvisorSandbox:
    sandbox = await host.engine.create(harness.sandbox_class(harness.LIMITS))
    await sandbox.hold(interpreter)
    await eventually(sandbox.cgroup.frozen)
    return sandbox


async def given(sandbox: GvisorSandbox, code: str) -> Behaviour:
    """Takes it, runs the program in it, and destroys it."""
    try:
        sandbox.take(harness.sandbox_class(harness.LIMITS))
        outcome = await sandbox.start(harness.python(code), harness.LIMITS, harness.Recorder())
    finally:
        await sandbox.destroy()
    assert outcome.termination == Exited(0)
    assert outcome.behaviour is not None
    return outcome.behaviour


def waits_for(code: str) -> Interpreter:
    interpreter = harness.sandbox_class(harness.LIMITS, harness.python(code)).interpreter
    assert interpreter is not None
    return interpreter


@pytest.mark.parametrize("ahead", ["init", "interpreter"])
async def test_program_of_a_waiting_sandbox_is_observed_as_in_a_cold_one(host: Host, ahead: str):
    quiet, cold = await host.tried(QUIET), await host.tried(TRIES)
    for code, expected in ((QUIET, quiet), (TRIES, cold)):
        sandbox = await held(host, waits_for(code) if ahead == "interpreter" else None)
        taken = datetime.now(UTC)
        told = await given(sandbox, code)
        assert (told.observation, told.reason, told.dropped) == (Observation.OBSERVED, "", 0)
        assert counts(told) == counts(expected)
        for action, kind in told.actions.items():
            assert without_ids(kind.examples) == without_ids(expected.actions[action].examples)
            assert kind.first is None or kind.first >= taken


def without_ids(examples: tuple[str, ...]) -> list[str]:
    """A process of the interpreter has the same id cold and warm; only an address, say, may differ."""
    return [one.split("(")[0] for one in examples]


async def test_sandbox_that_waits_longer_than_the_patience_with_the_reader_is_observed(
    host: Host, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(traces, "PATIENCE_S", 0.5)
    sandbox = await held(host, waits_for(QUIET))
    before = host.tracer.reader_pid
    await host.tried(QUIET)
    await asyncio.sleep(1)  # the time that it waits is what is tested
    told = await given(sandbox, "open('/tmp/x', 'w')")
    assert (told.observation, counts(told)) == (Observation.OBSERVED, {"files_written": 1})
    assert host.tracer.reader_pid == before


async def test_waiting_sandbox_whose_reader_died_is_not_given_out(host: Host):
    sandbox = await held(host, None)
    os.kill(host.tracer.reader_pid, signal.SIGKILL)
    await eventually(lambda: host.tracer.reader_pid is None)
    await asyncio.sleep(0)
    with pytest.raises(EngineUnavailableError, match="trace"):
        await given(sandbox, QUIET)


async def test_pool_replaces_a_sandbox_whose_reader_died_by_one_that_is_observed(host: Host):
    pool = warm.PooledEngine(host.engine, warm.SETTINGS, PoolMetrics(CollectorRegistry()), lambda: 0.0)
    try:
        await pool.prepare(harness.sandbox_class(harness.LIMITS))
        os.kill(host.tracer.reader_pid, signal.SIGKILL)
        await eventually(lambda: host.tracer.reader_pid is None)
        await asyncio.sleep(0)
        sandbox = await pool.create(harness.sandbox_class(harness.LIMITS))
        try:
            assert sandbox.start_kind is StartKind.COLD
            outcome = await sandbox.start(harness.python(QUIET), harness.LIMITS, harness.Recorder())
        finally:
            await sandbox.destroy()
    finally:
        await pool.close()
    assert outcome.behaviour is not None
    assert outcome.behaviour.observation is Observation.OBSERVED


async def test_without_a_tracer_the_reason_is_the_true_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_cgroups(name: str) -> cgroups.CgroupTree:
        raise cgroups.CgroupsUnavailableError(f"no cgroups for {name}")

    async def reason(settings: Settings) -> str:
        return (await composition.tracer_of(settings).open(tmp_path).behaviour()).reason

    chosen = Settings()
    assert "CRUCIBLE_EXECUTOR_TRACE" in await reason(dataclasses.replace(chosen, trace=False))
    monkeypatch.setattr(cgroups, "detect", no_cgroups)
    assert await reason(chosen) == "tracing is not available: no cgroups for crucible-trace"


# Without a sandbox: this test is the hostile kernel.


async def connected(trace: Trace, folder: Path) -> socket.socket:
    """What runsc does with the trace's configuration."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(str(folder / "trace.sock"))
    peer.send(tm.HANDSHAKE)
    peer.setblocking(False)
    async with asyncio.timeout(5):
        assert await asyncio.get_running_loop().sock_recv(peer, 100) == tm.HANDSHAKE
    return peer


async def test_a_second_connection_is_refused(host: Host, tmp_path: Path):
    trace = host.tracer.open(tmp_path)
    with await connected(trace, tmp_path) as peer, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second:
        with pytest.raises(OSError, match=r"No such file|refused"):
            second.connect(str(tmp_path / "trace.sock"))
        peer.send(tm.execve())
    assert (await trace.behaviour()).observation is Observation.OBSERVED
    trace.close()


async def test_a_connection_that_was_waiting_beside_the_first_is_never_read(host: Host, tmp_path: Path):
    trace = host.tracer.open(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waiting:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(str(tmp_path / "trace.sock"))
        waiting.connect(str(tmp_path / "trace.sock"))
        with peer:
            peer.send(tm.HANDSHAKE)
            peer.setblocking(False)
            async with asyncio.timeout(5):
                await asyncio.get_running_loop().sock_recv(peer, 100)
            with pytest.raises(OSError, match=r"reset|[Bb]roken"):
                waiting.send(tm.HANDSHAKE)
            peer.send(tm.execve())
    assert counts(await trace.behaviour()) == {}
    trace.close()


async def test_random_bytes_end_no_reader_and_spoil_no_other_run(host: Host, tmp_path: Path):
    folders = [tmp_path / name for name in ("hostile", "other")]
    for folder in folders:
        folder.mkdir()
    hostile, other = (host.tracer.open(folder) for folder in folders)
    chance = random.Random(7)
    with await connected(hostile, folders[0]) as bad, await connected(other, folders[1]) as good:
        before = host.tracer.reader_pid
        good.send(tm.execve())
        for number in range(2000):
            junk = chance.randbytes(chance.choice((1, 7, 8, 9, 100, 5000)))
            await sent(bad, junk if number % 2 else tm.execve() + junk)
        good.send(tm.opened(b"/etc/shadow"))
    told, untouched = await hostile.behaviour(), await other.behaviour()
    assert told.observation in (Observation.PARTIAL, Observation.NOT_OBSERVED)
    assert counts(untouched) == {"probes": 1}
    assert untouched.observation is Observation.OBSERVED
    assert host.tracer.reader_pid == before
    for trace in (hostile, other):
        trace.close()


async def test_a_flood_is_bounded_in_memory_and_told_as_partial(host: Host, tmp_path: Path):
    trace = host.tracer.open(tmp_path)
    with await connected(trace, tmp_path) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        await sent(peer, tm.execve())
        for number in range(3000):
            await sent(peer, tm.opened(b"/tmp/%d" % number + b"a" * 4000, 1))
        await sent(peer, tm.opened(b"a" * (300 << 10), 1))  # larger than what is read of one message
        assert resident_bytes(host.tracer.reader_pid) < 64 << 20
    told = await trace.behaviour()
    assert told.actions[Action.FILES_WRITTEN].count == 3000
    assert (told.observation, told.dropped) == (Observation.PARTIAL, 1)
    trace.close()


async def sent(peer: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(10):
        await asyncio.get_running_loop().sock_sendall(peer, data)


def resident_bytes(pid: int | None) -> int:
    return int(of_process(pid, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def of_process(pid: int | None, file: str) -> str:
    return Path(f"/proc/{pid}/{file}").read_text()


def status_of(pid: int | None) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in of_process(pid, "status").splitlines())


def cgroups_named(name: str) -> list[Path]:
    return [*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")]
