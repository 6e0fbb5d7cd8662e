"""Peers that are Python packages, each in an environment of its own under the cache, made only when asked for.

`python -m crucible_deploy.bench.peers.libraries` makes them (`make bench-peers`).
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.peers.daemon import Docker
from crucible_deploy.bench.peers.model import Peer, PeerAbsentError, Ran, Run
from crucible_deploy.environments import EnvironmentsError, find_python
from crucible_deploy.layout import Layout, LayoutError
from crucible_deploy.paths import Paths

_INSTALL_S = 600
_ANSWER_S = 120.0
_LINE_BYTES = 1 << 20
_LAST_WORDS = 4096


@dataclass(frozen=True)
class Library:
    """One package.

    Attributes:
        name: on PyPI.
        version: the one that is compared.
        needs: further requirements, where the package's own let in what breaks it.
        driver: the file beside this one that runs programs by it.
    """

    name: str
    version: str
    needs: tuple[str, ...]
    driver: str

    def environment(self, paths: Paths) -> Path:
        """Where its environment is."""
        return paths.cache / "peers" / f"{self.name}-{self.version}"

    def python(self, paths: Paths) -> Path:
        """The interpreter of that environment."""
        return self.environment(paths) / "bin" / "python"

    @property
    def requirements(self) -> list[str]:
        """What is installed."""
        return [f"{self.name}=={self.version}", *self.needs]


LIBRARIES = (
    Library("llm-sandbox", "0.3.46", ("docker==7.1.0",), "drive_llm_sandbox.py"),
    Library("epicbox", "1.1.0", ("docker==7.1.0", "urllib3<2", "requests<2.32"), "drive_epicbox.py"),
)


def peer(library: Library, paths: Paths, docker: Docker) -> Peer:
    """A library as a peer: its process stays, and each program gets a container."""
    return Peer(f"{library.name} {library.version}", partial(_opened, library, paths, docker))


@asynccontextmanager
async def _opened(library: Library, paths: Paths, docker: Docker) -> AsyncIterator[Run]:
    python = library.python(paths)
    if not python.is_file():
        raise PeerAbsentError(f"{library.name} {library.version} is not installed: make bench-peers")
    driver = str(Path(__file__).parent / library.driver)
    process = await asyncio.create_subprocess_exec(
        str(python), "-I", driver, docker.address, docker.image,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        limit=_LINE_BYTES, env={"PATH": os.defpath, "HOME": "/nonexistent"},
    )  # fmt: skip
    driven = _Driven(process)
    try:
        yield driven.run
    finally:
        await driven.end()


class _Driven:
    """A driver's process: programs go in by number, and each answer finds whom it is for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Ran]] = {}
        self._last_words = b""
        self._reading = asyncio.create_task(self._read())
        self._listening = asyncio.create_task(self._listen())

    async def run(self, code: str) -> Ran:
        """Runs one program."""
        if self._reading.done() or self._process.stdin is None:
            raise self._ended()
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._process.stdin.write(json.dumps({"id": number, "code": code}).encode() + b"\n")
            async with asyncio.timeout(_ANSWER_S):
                ran: Ran = await future
                return ran
        except TimeoutError:
            raise BenchError(f"no answer within {_ANSWER_S:g} s") from None
        finally:
            del self._asked[number]

    async def end(self) -> None:
        """Lets what it runs come to its end, that its containers go; then ends it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        finally:
            for task in (self._reading, self._listening):
                task.cancel()
            await asyncio.gather(self._reading, self._listening, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  # for the type checker
        try:
            while line := await self._process.stdout.readline():
                said = json.loads(line)
                future = self._asked.get(said["id"])
                if future is None or future.done():
                    continue
                if "error" in said:
                    future.set_exception(BenchError(said["error"]))
                else:
                    future.set_result(Ran(said["seconds"], said["stdout"].encode()))
        finally:
            await asyncio.wait([self._listening], timeout=1)
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(self._ended())

    async def _listen(self) -> None:
        """Keeps its last words: they say why it ended."""
        assert self._process.stderr is not None  # noqa: S101  # for the type checker
        while piece := await self._process.stderr.read(1 << 16):
            self._last_words = (self._last_words + piece)[-_LAST_WORDS:]

    def _ended(self) -> BenchError:
        return BenchError(f"its process has ended: {self._last_words.decode(errors='replace').strip()[-200:]}")


def install(paths: Paths) -> list[str]:
    """Makes the environments that are missing; returns the names of those made.

    Raises:
        EnvironmentsError: one cannot be made.
    """
    made = []
    for library in LIBRARIES:
        target = library.environment(paths)
        if library.python(paths).is_file() and (target / ".complete").is_file():
            continue
        shutil.rmtree(target, ignore_errors=True)
        _uv(paths, "venv", "--python", str(find_python()), str(target))
        _uv(paths, "pip", "install", "--python", str(library.python(paths)), *library.requirements)
        (target / ".complete").touch()
        made.append(f"{library.name} {library.version}")
    return made


def _uv(paths: Paths, *arguments: str) -> None:
    environment = dict(os.environ) | {
        "UV_CACHE_DIR": str(paths.uv_cache), "UV_PYTHON_DOWNLOADS": "never", "UV_LINK_MODE": "copy",
        "UV_SYSTEM_CERTS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [str(paths.uv), *arguments], env=environment, capture_output=True, timeout=_INSTALL_S, check=False
    )
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()[-800:]
        raise EnvironmentsError(f"uv {' '.join(arguments[:2])} failed: {words}")


def main() -> int:
    """Makes what is missing; returns the exit code."""
    try:
        for name in install(Layout.of(os.environ).paths):
            sys.stdout.write(f"==> installed {name} to be compared with\n")
    except (EnvironmentsError, LayoutError, OSError) as error:
        sys.stderr.write(f"peers: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
