"""All peers and all engines of ours side by side: one program at a time in turns, then four at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field

from crucible_client import CallError
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.load import PROGRAM
from crucible_deploy.bench.peers import go_judge, inside, libraries, ours, processes
from crucible_deploy.bench.peers.daemon import Docker, daemon
from crucible_deploy.bench.peers.model import Compared, Peer, PeerAbsentError, Ran, Run
from crucible_deploy.bench.report import Measured
from crucible_deploy.bench.samples import p50, p95
from crucible_deploy.bench.stand import WIDE, Stand
from crucible_deploy.bench.warm import PAUSE_S
from crucible_deploy.images import ImageStore
from crucible_deploy.stack import Options

_HELLO = b"hello"
_WARM_UPS = 2


async def measure(stand: Stand) -> Measured:
    """Every peer's line, also of those that this machine cannot run."""
    async with AsyncExitStack() as held:
        peers = await _peers(stand, held)
        return Measured(
            compared=tuple(await compare(peers, stand.sizes.compared, stand.sizes.compared_wide, stand.say))
        )


async def _peers(stand: Stand, held: AsyncExitStack) -> list[Peer]:
    store = ImageStore(stand.common.paths.images)
    manifest = store.manifest("python")
    if manifest is None:
        raise BenchError("there is no image: make images")
    rootfs = store.rootfs(manifest)
    needing: list[Peer]
    try:
        docker = await held.enter_async_context(daemon(stand.common.paths.runsc, rootfs))
    except PeerAbsentError as error:
        needing = [_absent(name, str(error)) for name in _NEED_DOCKER]
    else:
        needing = await _with_docker(stand, held, docker)
    others = [go_judge.peer(stand.choice.go_judge)] if stand.choice.go_judge else []
    return [
        processes.native(),
        processes.bubblewrap(rootfs),
        *others,
        processes.bare_runsc(stand.bare),
        *needing,
        ours.engine("ours: gvisor, cold", "gvisor", stand.cold),
        ours.engine("ours: gvisor, warm", "gvisor", stand.client, pause_s=PAUSE_S),
        ours.engine("ours: subprocess (unsafe)", "subprocess", stand.client),
    ]


_NEED_DOCKER = (
    "docker run (runc)",
    "docker run --runtime=runsc",
    *(f"{library.name} {library.version}" for library in libraries.LIBRARIES),
    "ours: docker",
    "ours: docker-gvisor",
)


async def _with_docker(stand: Stand, held: AsyncExitStack, docker: Docker) -> list[Peer]:
    options = Options(slots=WIDE, pool=0, docker_host=docker.address)
    _, client = await held.enter_async_context(stand.another(options))
    runc, runsc, *_, docker_engine, docker_gvisor = _NEED_DOCKER
    return [
        processes.docker_run(runc, docker.address, docker.image),
        processes.docker_run(runsc, docker.address, docker.image, "--runtime=runsc"),
        *(libraries.peer(library, stand.common.paths, docker) for library in libraries.LIBRARIES),
        ours.engine(docker_engine, "docker", client),
        ours.engine(docker_gvisor, "docker-gvisor", client),
    ]


def _absent(name: str, reason: str) -> Peer:
    def opened() -> AbstractAsyncContextManager[Run]:
        raise PeerAbsentError(reason)

    return Peer(name, opened)


@dataclass
class _Line:
    """What is known of one peer while it is measured."""

    peer: Peer
    run: Run | None = None
    reason: str = ""
    failed: bool = False
    singles: list[Ran] = field(default_factory=list)
    wide: list[Ran] = field(default_factory=list)
    wide_s: float = 0.0
    inside: dict[str, str] | None = None

    def give_up(self, reason: str, *, failed: bool) -> None:
        """From here on it is not measured any more."""
        self.run, self.reason, self.failed = None, reason, failed

    def compared(self) -> Compared:
        """Its line in the tables."""
        if self.reason:
            return Compared(self.peer.name, self.reason, self.failed)
        ms = [one.seconds * 1000 for one in self.singles]
        note = f"{len(ms)} single runs, {len(self.wide)} wide"
        if self.peer.pause_s:
            note += f"; warm: {sum(one.warm for one in self.singles)} and {sum(one.warm for one in self.wide)}"
        return Compared(
            self.peer.name, median_ms=p50(ms), p95_ms=p95(ms), per_second=len(self.wide) / self.wide_s,
            runs=len(ms), note=note, inside=self.inside,
        )  # fmt: skip


async def compare(peers: Sequence[Peer], singles: int, wide: int, say: Callable[[str], None]) -> list[Compared]:
    """Measures all peers in turns.

    Args:
        peers: in the order of the tables.
        singles: single runs of each.
        wide: runs of each, four at once.
        say: told what is being done.
    """
    async with AsyncExitStack() as held:
        lines = [_Line(peer) for peer in peers]
        for line in lines:
            await _open(line, held)
        say("side by side: " + ", ".join(line.peer.name for line in lines if line.run is not None))
        for number in range(singles):
            # Each round begins with another peer: none always follows the same one.
            for line in lines[number % len(lines) :] + lines[: number % len(lines)]:
                await asyncio.sleep(line.peer.pause_s if line.run is not None else 0)
                await _tried(line, _single)
        for line in lines:
            await asyncio.sleep(line.peer.pause_s if line.run is not None else 0)
            await _tried(line, lambda line, run: _wide(line, run, wide))
        with inside.marked_process() as token:
            for line in lines:
                await _tried(line, lambda line, run: _look(line, run, token))
        return [line.compared() for line in lines]


async def _open(line: _Line, held: AsyncExitStack) -> None:
    try:
        line.run = await held.enter_async_context(line.peer.open())
    except PeerAbsentError as error:
        line.give_up(str(error), failed=False)
    for _ in range(_WARM_UPS):
        await _tried(line, _checked)


async def _tried(line: _Line, step: Callable[[_Line, Run], Awaitable[None]]) -> None:
    if line.run is None:
        return
    try:
        await step(line, line.run)
    except (BenchError, CallError, OSError) as error:
        line.give_up(str(error), failed=True)


async def _checked(_line: _Line, run: Run) -> None:
    _check(await run(PROGRAM))


async def _single(line: _Line, run: Run) -> None:
    line.singles.append(_check(await run(PROGRAM)))


async def _wide(line: _Line, run: Run, count: int) -> None:
    left = iter(range(count))

    async def lane() -> None:
        for _ in left:
            line.wide.append(_check(await run(PROGRAM)))

    began = time.perf_counter()
    lanes = [asyncio.create_task(lane()) for _ in range(WIDE)]
    try:
        await asyncio.gather(*lanes)
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
    line.wide_s = time.perf_counter() - began


async def _look(line: _Line, run: Run, token: str) -> None:
    line.inside = inside.describe((await run(inside.code(token))).stdout)


def _check(ran: Ran) -> Ran:
    if ran.stdout.strip() != _HELLO:
        raise BenchError(f"the program's output did not come back: {ran.stdout[:200]!r}")
    return ran
