"""The self-tests of what this machine gives: cgroups, the removal of leftovers, the init and launcher, the images."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

from crucible_executor import cgroups, leftovers
from crucible_executor.cgroups import Bounds, CgroupsUnavailableError, CgroupTree
from crucible_executor.host_process import HostProcess
from crucible_executor.images import ImageNotFoundError, ImageStore
from crucible_executor.runtimes import RUNTIMES
from crucible_executor.selftest.engine import PYTHON
from crucible_executor.selftest.model import Check, CheckFailedError, CheckNotRunError, expect
from crucible_executor.settings import Settings

_BOUNDS = Bounds(memory_bytes=64 << 20, tasks=16)
_EROFS_MAGIC = b"\xe2\xe1\xf5\xe0"
_EROFS_OFFSET = 1024
_ELF_MAGIC = b"\x7fELF"
_PT_INTERP = 3
_LAUNCH_FAILED = 111
_WAIT_SECONDS = 5.0


def checks(settings: Settings) -> tuple[Check, ...]:
    """The checks of this machine, in a cgroup and a folder of their own."""

    def bound(measure: Callable[[Settings], Awaitable[str]]) -> Callable[[], Awaitable[str]]:
        return lambda: measure(settings)

    return (
        Check("cgroups", "processes are bounded, stopped and ended from outside", bound(_cgroups)),
        Check("leftovers", "what an earlier executor left is found and removed", bound(_leftovers)),
        Check("init", "it needs nothing of the image, and nobody else can change it", bound(_init)),
        Check("init", "the launcher starts nothing for a parent that is gone", bound(_launcher)),
        Check("images", "each runtime's root file system is whole and nobody else's", bound(_images)),
    )


async def sweep(settings: Settings) -> None:
    """Removes what a self-test left whose executor ended meanwhile. At start."""
    try:
        tree = _tree(settings)
    except CgroupsUnavailableError:
        return
    await leftovers.sweep(_folder(settings), tree, set())
    tree.discard()
    shutil.rmtree(_folder(settings), ignore_errors=True)


def _tree(settings: Settings) -> CgroupTree:
    return cgroups.detect(f"{settings.cgroup}-selftest")


def _folder(settings: Settings) -> Path:
    return settings.run_dir / "selftest"


def _prepared(settings: Settings) -> CgroupTree:
    if os.geteuid() != 0:
        raise CheckNotRunError("needs root")
    try:
        tree = _tree(settings)
        tree.prepare()
    except CgroupsUnavailableError as error:
        raise CheckFailedError(str(error)) from error
    return tree


def _sleeper(launcher: Path, procs_files: tuple[Path, ...], cwd: Path = Path("/")) -> HostProcess:
    """A process that waits in a cgroup and ends with the executor."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        argv = [str(launcher), str(os.getpid()), *map(str, procs_files), "--", "/bin/sleep", "300"]
        return HostProcess(argv, stdin=null, stdout=null, stderr=null, env={}, cwd=cwd)
    finally:
        os.close(null)


async def _joined(group: cgroups.Cgroup, process: HostProcess) -> None:
    async with asyncio.timeout(_WAIT_SECONDS):
        while group.pids() != [process.pid]:  # the kernel tells nobody
            expect(not process.exited.done(), "the launcher did not put a process into the cgroup")
            await asyncio.sleep(0.002)


async def _cgroups(settings: Settings) -> str:
    tree = _prepared(settings)
    group = tree.create("bounded", _BOUNDS)
    try:
        process = _sleeper(settings.init_dir / "crucible-launch", group.procs_files)
        await _joined(group, process)
        said = ["one process joined"]
        if group.can_freeze:
            group.freeze()
            async with asyncio.timeout(_WAIT_SECONDS):
                while not group.frozen():  # noqa: ASYNC110  # the kernel tells nobody
                    await asyncio.sleep(0.002)
            said.append("was stopped")
        charged = group.memory_bytes()
        began = asyncio.get_running_loop().time()
        await group.kill()
        await asyncio.wait_for(asyncio.shield(process.exited), _WAIT_SECONDS)
        said.append(f"was ended in {(asyncio.get_running_loop().time() - began) * 1000:.0f} ms")
        expect(not group.pids(), f"processes {group.pids()} are left")
    finally:
        await group.kill()
        await group.remove()
        tree.discard()
    kind = type(tree).__name__.removeprefix("CgroupTree").lower()
    return f"cgroup {kind}: {', '.join(said)}; {charged >> 10} KiB of memory were counted"


async def _leftovers(settings: Settings) -> str:
    """As an earlier executor leaves a sandbox: a folder, a cgroup, a process in both."""
    tree, folder = _prepared(settings), _folder(settings)
    left = folder / "left"
    left.mkdir(parents=True, exist_ok=True, mode=0o700)
    group = tree.create(left.name, _BOUNDS)
    try:
        process = _sleeper(settings.init_dir / "crucible-launch", group.procs_files, cwd=left)
        await _joined(group, process)
        found = await leftovers.sweep(folder, tree, alive=set())
        await asyncio.wait_for(asyncio.shield(process.exited), _WAIT_SECONDS)
        expect(found == 1, f"{found} were found")
        expect(not left.exists() and not group.exists, "the folder or the cgroup is still there")
    finally:
        await group.kill()
        await group.remove()
        tree.discard()
        shutil.rmtree(folder, ignore_errors=True)
    return "1 left, 1 found; its process, cgroup and folder are gone"


async def _init(settings: Settings) -> str:
    told = []
    for name in ("crucible-init", "crucible-launch"):
        file = settings.init_dir / name
        content = file.read_bytes()
        expect(content[:4] == _ELF_MAGIC, f"{file} is no ELF program")
        expect(_PT_INTERP not in _segments(content), f"{file} needs a loader of the image: it is not static")
        _expect_ours(file.resolve())
        told.append(f"{name} {hashlib.sha256(content).hexdigest()[:12]}, {len(content)} bytes")
    return f"static, written by nobody but its owner: {'; '.join(told)}"


def _segments(elf: bytes) -> set[int]:
    """The types of the program headers of a 64-bit little-endian ELF file."""
    offset = int.from_bytes(elf[32:40], "little")
    size, count = int.from_bytes(elf[54:56], "little"), int.from_bytes(elf[56:58], "little")
    return {int.from_bytes(elf[offset + size * index :][:4], "little") for index in range(count)}


async def _launcher(settings: Settings) -> str:
    launcher = settings.init_dir / "crucible-launch"
    codes = {}
    for what, parent in (("its own parent", os.getpid()), ("another", os.getpid() + 1)):
        codes[what] = await asyncio.to_thread(_launched, [str(launcher), str(parent), "--", "/bin/true"])
    expect(codes == {"its own parent": 0, "another": _LAUNCH_FAILED}, f"exit codes {codes}")
    return f"exit code 0 for its own parent, {_LAUNCH_FAILED} for another"


def _launched(argv: list[str]) -> int:
    return subprocess.run(argv, capture_output=True, timeout=10, check=False).returncode


async def _images(settings: Settings) -> str:
    store = ImageStore(settings.images_dir)
    names = dict.fromkeys(runtime.image for runtime in RUNTIMES)
    return "; ".join([_image(store, name) for name in names])


def _image(store: ImageStore, name: str) -> str:
    try:
        image = store.resolve(name)
    except ImageNotFoundError as error:
        expect(name != PYTHON.image and name not in store.names(), str(error))
        return f"{name}: not on this machine"
    expect(store.resolve(image.digest).rootfs == image.rootfs, f"{name}: its name and its digest are two trees")
    for runtime in RUNTIMES:
        program = image.rootfs / runtime.command[0].lstrip("/")
        expect(runtime.image != name or os.path.lexists(program), f"{name} lacks {runtime.command[0]}")
    for path in (image.rootfs, image.rootfs / "usr", image.rootfs / "etc"):
        _expect_ours(path)
    if image.erofs is None:
        return f"{name} {image.digest[:19]} (a tree)"
    _expect_ours(image.erofs)
    with image.erofs.open("rb") as stream:
        stream.seek(_EROFS_OFFSET)
        expect(stream.read(len(_EROFS_MAGIC)) == _EROFS_MAGIC, f"{image.erofs} is no EROFS file")
    return f"{name} {image.digest[:19]} (packed, {image.erofs.stat().st_size >> 20} MiB)"


def _expect_ours(path: Path) -> None:
    status = path.stat()
    expect(status.st_uid in (0, os.geteuid()), f"{path} belongs to user {status.st_uid}")
    expect(not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH), f"{path} can be written by others")
