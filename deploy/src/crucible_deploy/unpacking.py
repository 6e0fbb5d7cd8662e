"""Starts the process that unpacks an archive, without any privilege, and takes what it says with a grain of salt.

It runs as a user of no one (`users.transient`), without capabilities and `no_new_privs`, in mount, pid, network, IPC
and UTS namespaces of its own, with limits of memory, CPU time, file size, descriptors and processes. It is given the
archive and the folder to fill as open descriptors, and needs no path of the host but the interpreter's.
"""

import io
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crucible_deploy import adoption, environments, users
from crucible_deploy.failures import BuildError
from crucible_deploy.rootfs import normalise

_PACKAGE = Path(__file__).with_name("unpack")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_BLOB = re.compile(r"[0-9a-f]{64}")
_MOST_BLOBS = 512
_MOST_ANSWER_BYTES = 1 << 16
_MOST_MEMORY_BYTES = 1 << 30
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("--mount", "--pid", "--net", "--ipc", "--uts")


class UnpackError(BuildError):
    """An archive was not unpacked; the text is one sentence that says why."""


@dataclass(frozen=True)
class UnpackBounds:
    """How much an archive may be.

    Attributes:
        content_bytes: of all files together, unpacked; of a packed archive likewise.
        entries: files, folders and links.
        seconds: of work.
    """

    content_bytes: int = 4 << 30
    entries: int = 250_000
    seconds: int = 900


@dataclass(frozen=True)
class Unpacked:
    """What the unpacking process says that it did.

    Attributes:
        format: `rootfs`, `docker` or `oci`.
        config: the digest of the image's configuration; empty for a plain root file system.
        layers: how many were put over one another.
        left_out: devices and pipes that were left out.
    """

    format: str
    config: str
    layers: int
    left_out: int


def unpack(
    source: Path, work: Path, *, format_: str = "auto", tag: str | None = None, bounds: UnpackBounds | None = None
) -> Unpacked:
    """Unpacks an archive into the new folder `work/rootfs`, which belongs to root afterwards. Needs root.

    Args:
        source: a tar archive, also gzipped, of a root file system, of `docker save` or of an OCI layout; or the folder
            of an OCI layout; or `-`, standard input.
        work: an empty folder that only root can enter.
        format_: `auto`, `rootfs`, `docker` or `oci`.
        tag: which image of the archive.
        bounds: see there.

    Raises:
        BuildError: in one sentence, why not. What is in `work` is to be removed.
        OSError: the archive cannot be opened.
    """
    bounds = bounds or UnpackBounds()
    account = users.transient()
    root = work / "rootfs"
    root.mkdir(mode=0o700)
    os.chown(root, account.uid, account.gid)
    with ExitStack() as opened:
        archive, members = _open_source(source, opened)
        folder = _open(root, os.O_RDONLY | os.O_DIRECTORY, opened)
        spool = opened.enter_context(tempfile.TemporaryFile(dir=work)).fileno()
        code = opened.enter_context(_code())
        job = {
            "archive": archive,
            "members": members,
            "root": folder,
            "spool": spool,
            "format": format_,
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "tag": tag,
            "content_bytes": bounds.content_bytes,
            "entries": bounds.entries,
        }
        descriptors = [one for one in (archive, folder, spool, code, *members.values()) if one is not None]
        command = [
            *_confined(account, bounds, max(descriptors)),
            *(str(environments.find_python()), "-I", "-S", f"/proc/self/fd/{code}", json.dumps(job)),
        ]
        unpacked = _answer(*_run(command, descriptors, bounds.seconds), bounds)
    # The root itself and the folders that a sandbox mounts over are not the archive's.
    adoption.check(root, account, entries=bounds.entries + 8, content_bytes=bounds.content_bytes)
    root.chmod(0o755)
    normalise(root)
    return unpacked


def _open_source(source: Path, opened: ExitStack) -> tuple[int | None, dict[str, int]]:
    """The descriptor of an archive, or those of an OCI layout's files: opened here, where everything can be read."""
    if str(source) == "-":
        return os.dup(0), {}
    if not source.is_dir():
        return _open(source, os.O_RDONLY, opened), {}
    members: dict[str, int] = {}
    for name in ("oci-layout", "index.json"):
        if (source / name).exists():
            members[name] = _open(source / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, opened)
    blobs = source / "blobs" / "sha256"
    names = sorted(path.name for path in blobs.iterdir() if _BLOB.fullmatch(path.name)) if blobs.is_dir() else []
    if len(members) != 2 or not names:
        raise UnpackError(
            f"the folder {source} is no OCI image layout: it lacks oci-layout, index.json or blobs/sha256"
        )
    if len(names) > _MOST_BLOBS:
        raise UnpackError(f"{blobs} holds {len(names)} files, more than {_MOST_BLOBS}: export one image alone")
    for name in names:
        members[f"blobs/sha256/{name}"] = _open(blobs / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, opened)
    return None, members


def _open(path: Path, flags: int, opened: ExitStack) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


@contextmanager
def _code() -> Iterator[int]:
    """The unpacking package as an archive in memory, which any user may read through its descriptor."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("__main__.py", "from crucible_deploy.unpack.__main__ import main\nmain()\n")
        archive.writestr("crucible_deploy/__init__.py", "")
        for file in sorted(_PACKAGE.glob("*.py")):
            archive.writestr(f"crucible_deploy/unpack/{file.name}", file.read_bytes())
    descriptor = os.memfd_create("unpack")
    try:
        os.write(descriptor, packed.getvalue())
        os.fchmod(descriptor, 0o444)
        yield descriptor
    finally:
        os.close(descriptor)


def _confined(account: users.Account, bounds: UnpackBounds, highest_descriptor: int) -> list[str]:
    """What comes before the interpreter: namespaces first, then no privilege, then limits."""
    for tool in ("setpriv", "unshare", "prlimit"):
        if shutil.which(tool, path=_PATH) is None:
            raise UnpackError(f"{tool} is not installed; install the package util-linux")
    limits = {
        "as": _MOST_MEMORY_BYTES,
        "cpu": bounds.seconds,
        "fsize": bounds.content_bytes + (1 << 30),
        "nofile": highest_descriptor + 128,
        "nproc": 1,
        "core": 0,
    }
    return [
        *("setpriv", "--pdeathsig", "KILL", "unshare", *_namespaces(), "--fork", "--kill-child"),
        *users.without_privilege(account),
        *("prlimit", *(f"--{name}={value}" for name, value in limits.items()), "--"),
    ]


def _namespaces() -> tuple[str, ...]:
    """Those that are to be had: not all of them are in a chroot, and then the user and the limits must do."""
    tried = ["unshare", *_NAMESPACES, "--fork", "true"]
    done = subprocess.run(tried, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={"PATH": _PATH})
    return _NAMESPACES if done.returncode == 0 else ("--net",)


def _run(command: list[str], descriptors: list[int], seconds: int) -> tuple[int, bytes]:
    """Runs it to its end; returns how it ended and what it said. Whatever happens, it is gone afterwards."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": _PATH, "LC_ALL": "C.UTF-8"},
        pass_fds=descriptors,
        start_new_session=True,
        cwd="/",
        umask=0o022,
    )
    if process.stdout is None:
        raise AssertionError("its output is a pipe")
    with process, process.stdout as pipe:
        try:
            said = _read(pipe.fileno(), _MOST_ANSWER_BYTES, time.monotonic() + seconds)
            return process.wait(10), said
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            # The pipe ends with the last of its children.
            _read(pipe.fileno(), None, time.monotonic() + 10)
            if isinstance(error, subprocess.TimeoutExpired):
                raise UnpackError("the unpacking process does not end") from None
            raise


def _read(pipe: int, most: int | None, deadline: float) -> bytes:
    """Reads to the end; keeps at most so many bytes, or none.

    Raises:
        UnpackError: it takes too long, or there is more.
    """
    kept = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise UnpackError("unpacking took too long and was stopped")
        piece = os.read(pipe, 1 << 16)
        if not piece:
            return kept
        if most is not None:
            kept += piece
            if len(kept) > most:
                raise UnpackError("the unpacking process says too much and was stopped")


def _answer(code: int, said: bytes, bounds: UnpackBounds) -> Unpacked:
    """Takes the answer apart. A process that hostile bytes have taken over could say anything."""
    lines = said.decode(errors="replace").strip().splitlines() or [""]
    try:
        answer: Any = json.loads(lines[-1])
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            raise UnpackError(answer["error"][:1000])
        numbers = {name: int(answer[name]) for name in ("layers", "left_out")}
        made = Unpacked(str(answer["format"])[:16], str(answer["config"])[:80], **numbers)
    except (ValueError, KeyError, TypeError):
        if code in (-9, 128 + 9, 128 + 24, -24):
            most = f"{bounds.seconds} s of CPU time and {_MOST_MEMORY_BYTES} bytes of memory"
            raise UnpackError(f"the unpacking process was ended: it may take {most}") from None
        raise UnpackError(f"the unpacking process ended with {code}: {lines[-1][:300]}") from None
    if code != 0:
        raise UnpackError(f"the unpacking process ended with {code}: {asdict(made)}")
    return made
