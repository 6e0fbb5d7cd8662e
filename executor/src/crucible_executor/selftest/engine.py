"""An engine's self-test: real programs in sandboxes of its own, judged by the host where the host can see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from crucible_executor.behaviour import Action, Observation, Update
from crucible_executor.engines.base import Engine, EngineUnavailableError, Sandbox
from crucible_executor.model import (
    Exited,
    File,
    Isolation,
    Killed,
    Limit,
    LimitExceeded,
    Limits,
    Outcome,
    Program,
    SandboxClass,
    Stream,
)
from crucible_executor.runtimes import BASE_ENV, RUNTIMES
from crucible_executor.sampling import Sample
from crucible_executor.selftest import host
from crucible_executor.selftest.model import (
    ENGINE,
    Check,
    CheckFailedError,
    CheckNotRunError,
    Status,
    expect,
    run,
)
from crucible_executor.spool import Spool

PYTHON = next(runtime for runtime in RUNTIMES if runtime.name == "python")
"""What the programs are written for; its image is the one that they run on."""

_NOBODY = 65534
_LIMITS = Limits(
    wall_time=timedelta(seconds=20),
    cpu_time=None,
    cpus=1,
    memory_bytes=64 << 20,
    processes=16,
    open_files=64,
    output_bytes=4096,
    disk_bytes=1 << 20,
    disk_inodes=None,
)
_KEPT_BYTES = 4096
_BEGIN_SECONDS = 30.0

_LOOK = """
import json, os, signal, socket, sys
token, port = sys.argv[1:]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
try:
    interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
except OSError:
    interfaces = []
try:
    socket.create_connection(("127.0.0.1", int(port)), 2).close()
    reached = "connected"
except OSError as error:
    reached = error.strerror or str(error)
print(json.dumps({"token": token, "uid": os.getuid(), "gid": os.getgid(), "interfaces": interfaces,
                  "capabilities": status["CapEff"].strip(), "reached": reached}), flush=True)
while True:
    signal.pause()
"""
_HOG = "held = []\nwhile True:\n    held.append(b'x' * (1 << 20))\n"
_ECHO = "import sys\nprint(sys.argv[1])\n"


def checks(engine: Engine, *, traced: bool | None = None) -> tuple[Check, ...]:
    """The checks of one engine, which must make its sandboxes anew: nobody's waiting sandbox may be taken for them.

    Args:
        engine: whose.
        traced: whether what programs try is watched there; None where it never is.
    """
    trial = _Trial(engine, traced=bool(traced))
    component = f"{ENGINE} {engine.capabilities.name}"
    made = (
        Check(component, "a program runs and prints its token", trial.ran),
        Check(component, "it is user 65534 without capabilities", trial.is_nobody),
        Check(component, "it has no network", trial.has_no_network),
        Check(component, "killed, it is gone from the host", trial.is_gone),
        Check(component, "the memory limit ends a program", trial.is_bounded),
    )
    return made if traced is None else (*made, Check("trace", "what a program tries is seen", trial.is_traced))


async def prove(engine: Engine) -> None:
    """Runs an engine's own checks: no engine is offered without them.

    Raises:
        EngineUnavailableError: one failed; says which, and what was measured.
    """
    failed = [
        f"{result.name}: {result.evidence}"
        async for result in run(one for one in engine.self_test() if one.component.startswith(ENGINE))
        if result.status is Status.FAILED
    ]
    if failed:
        raise EngineUnavailableError(f"its self-test failed: {'; '.join(failed)}")


@contextlib.contextmanager
def refusals_fail() -> Iterator[None]:
    """Inside, an engine that refuses fails the check with its reason."""
    try:
        yield
    except EngineUnavailableError as error:
        raise CheckFailedError(str(error)) from error


def sandbox_class() -> SandboxClass:
    """What the programs of a self-test run in."""
    return SandboxClass(
        image_digest=PYTHON.image,
        memory_bytes=_LIMITS.memory_bytes,
        disk_bytes=_LIMITS.disk_bytes,
        disk_inodes=None,
        cpus=_LIMITS.cpus,
        processes=_LIMITS.processes,
    )


async def echo(sandbox: Sandbox) -> str:
    """Runs a program that prints a random token, and returns it.

    Raises:
        CheckFailedError: the program did not print it, or did not exit with 0.
    """
    token, sink = secrets.token_hex(16), _Sink()
    outcome = await sandbox.start(_program(_ECHO, token), _LIMITS, sink)
    expect(outcome.termination == Exited(0), f"the program did not exit with 0: {outcome.termination}")
    expect(bytes(sink.kept).strip() == token.encode(), f"the program printed {bytes(sink.kept)!r} and not its token")
    return token


@dataclass(frozen=True)
class _Seen:
    """What one program said, and what the host saw of it."""

    said: dict[str, Any]
    callers: int
    alive: int
    left: list[int]
    gone_seconds: float
    outcome: Outcome


@dataclass
class _Sink:
    """Keeps the first bytes of what a program writes."""

    kept: bytearray = field(default_factory=bytearray)
    line: asyncio.Event = field(default_factory=asyncio.Event)

    def started(self) -> None:
        """Ignored."""

    def output(self, stream: Stream, data: bytes) -> None:
        """See `Sink`."""
        del stream
        self.kept += data[: _KEPT_BYTES - len(self.kept)]
        if b"\n" in self.kept:
            self.line.set()

    def ending(self) -> None:
        """Ignored."""

    def tried(self, update: Update) -> None:
        """Ignored."""

    def sampled(self, sample: Sample) -> None:
        """Ignored."""

    def spool(self) -> Spool:
        """Never asked for: its programs' limits ask for no files."""
        raise NotImplementedError


class _Trial:
    """One program that most checks look at, run when the first of them asks."""

    def __init__(self, engine: Engine, *, traced: bool) -> None:
        self._engine = engine
        self._traced = traced
        self._isolated = engine.capabilities.isolation is not Isolation.NONE
        self._seen: _Seen | None = None

    async def ran(self) -> str:
        """The program's token came out, and nothing else."""
        token = secrets.token_hex(16)
        began = asyncio.get_running_loop().time()
        seen = await self._look(token)
        said = seen.said.get("token")
        expect(said == token, f"the program did not print its token but {seen.said!r}")
        self._seen = seen
        return f"printed a random token of 128 bits; {asyncio.get_running_loop().time() - began:.2f} s with its sandbox"

    async def is_nobody(self) -> str:
        """The program's own view: what the sandbox's kernel grants it."""
        said = self._needed().said
        if not self._isolated:
            raise CheckNotRunError("the engine has no isolation: the program is who the executor made it")
        expect((said["uid"], said["gid"]) == (_NOBODY, _NOBODY), f"uid {said['uid']}, gid {said['gid']}")
        expect(int(said["capabilities"], 16) == 0, f"effective capabilities {said['capabilities']}")
        return f"uid {said['uid']}, gid {said['gid']}, effective capabilities {said['capabilities']}"

    async def has_no_network(self) -> str:
        """A listener of the host heard nothing, and the program sees no interface but its own loopback."""
        seen = self._needed()
        if not self._isolated:
            raise CheckNotRunError("the engine has no isolation: the program has the host's network")
        expect(seen.callers == 0, f"{seen.callers} connection(s) came to a listener of the host")
        others = [name for name in seen.said["interfaces"] if name != "lo"]
        expect(not others, f"the program sees the interfaces {', '.join(others)}")
        return f"a listener on the host's loopback heard nothing; the program was told: {seen.said['reached']}"

    async def is_gone(self) -> str:
        """Looked up on the host before the kill and after."""
        seen = self._needed()
        expect(seen.outcome.termination == Killed(), f"it ended otherwise: {seen.outcome.termination}")
        expect(seen.alive > 0, "the host showed no process of the sandbox while it lived, so nothing is proved")
        expect(not seen.left, f"processes {seen.left} are left")
        return f"{seen.alive} process(es) before the kill, none {seen.gone_seconds * 1000:.0f} ms after it"

    async def is_bounded(self) -> str:
        """A program that takes all memory is ended by the limit, with the host's evidence."""
        if Limit.MEMORY not in self._engine.capabilities.enforces:
            raise CheckNotRunError("the engine does not enforce a memory limit, and says so")
        with refusals_fail():
            sandbox = await self._engine.create(sandbox_class())
        try:
            outcome = await sandbox.start(_program(_HOG), _LIMITS, _Sink())
        finally:
            await asyncio.shield(sandbox.destroy())
        match outcome.termination:
            case LimitExceeded(Limit.MEMORY, evidence):
                return evidence
        raise CheckFailedError(f"the program went beyond {_LIMITS.memory_bytes} bytes: {outcome.termination}")

    async def is_traced(self) -> str:
        """The one connection that the program tried is told."""
        behaviour = self._needed().outcome.behaviour
        if behaviour is None or behaviour.observation is Observation.NOT_OBSERVED:
            reason = "not observed" if behaviour is None else f"not observed: {behaviour.reason}"
            raise CheckFailedError(reason) if self._traced else CheckNotRunError(reason)
        connections = behaviour.actions[Action.CONNECTIONS]
        expect(connections.count > 0, "the connection that the program tried is not in its trace")
        return f"{connections.count} connection(s) tried: {', '.join(connections.examples)}"

    def _needed(self) -> _Seen:
        if self._seen is None:
            raise CheckNotRunError("the program did not run")
        return self._seen

    async def _look(self, token: str) -> _Seen:
        with _listener() as (port, calls):
            with refusals_fail():
                sandbox = await self._engine.create(sandbox_class())
            sink = _Sink()
            running = asyncio.ensure_future(sandbox.start(_program(_LOOK, token, str(port)), _LIMITS, sink))
            try:
                line = asyncio.ensure_future(sink.line.wait())
                await asyncio.wait([running, line], timeout=_BEGIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                line.cancel()
                alive = await asyncio.to_thread(host.processes_of, sandbox.id)
                began = asyncio.get_running_loop().time()
                await sandbox.kill()
                gone_seconds = asyncio.get_running_loop().time() - began
                outcome = await running
            finally:
                await asyncio.shield(_ended(sandbox, running))
            left = await asyncio.to_thread(host.processes_of, sandbox.id)
            return _Seen(_parsed(bytes(sink.kept), outcome), len(calls()), len(alive), left, gone_seconds, outcome)


async def _ended(sandbox: Sandbox, running: asyncio.Future[Outcome]) -> None:
    if not running.done():
        await sandbox.kill()
        await asyncio.wait([running])
    await sandbox.destroy()


def _parsed(said: bytes, outcome: Outcome) -> dict[str, Any]:
    try:
        made = json.loads(said)
    except ValueError:
        raise CheckFailedError(f"the program said {said[:200]!r} and ended: {outcome.termination}") from None
    expect(
        isinstance(made, dict) and {"token", "uid", "gid", "interfaces"} <= made.keys(), f"the program said {made!r}"
    )
    return dict(made)


@contextlib.contextmanager
def _listener() -> Iterator[tuple[int, Any]]:
    """A listener on the host's loopback: its port, and what tells the connections that came."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.bind(("127.0.0.1", 0))
        made.listen(8)
        made.setblocking(False)
        heard: list[str] = []

        def calls() -> list[str]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    connection, peer = made.accept()
                    connection.close()
                    heard.append(str(peer))
            return heard

        yield made.getsockname()[1], calls


def _program(code: str, *arguments: str) -> Program:
    return Program(PYTHON.argv("main.py", arguments), (File("main.py", code.encode()),), dict(BASE_ENV), b"")
