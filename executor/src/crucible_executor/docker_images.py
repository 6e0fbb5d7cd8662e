"""Brings images of the store into a Docker daemon, each with the sandboxes' init baked in, once.

Docker refuses to copy into a container whose root is read-only, and a bind mount would be a path of the host: so the
init is a file of the image.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Generator
from pathlib import Path

from docker import APIClient

from crucible_executor.dockerd import Daemon, DaemonError, MissingError
from crucible_executor.images import Image

REPOSITORY = "crucible-sandbox"
INIT = "/.crucible/init"
_IMPORT_S = 300.0
_STALL_S = 60.0
_CHUNK_BYTES = 1 << 20


class DockerImages:
    """The images of one daemon.

    Args:
        daemon: the daemon.
        init: the built `crucible-init`.
    """

    def __init__(self, daemon: Daemon, init: Path) -> None:
        self._daemon = daemon
        self._init = init
        self._ids: dict[str, str] = {}
        self._importing = asyncio.Lock()

    async def ensure(self, image: Image) -> str:
        """The daemon's id of an image; imported first, in some seconds, when the daemon does not have it.

        Raises:
            DaemonError: it could not be imported.
            OSError: the init cannot be read.
        """
        known = self._ids.get(image.digest)
        if known is not None:
            return known
        async with self._importing:
            init = self._init.read_bytes()
            tag = f"{image.digest.removeprefix('sha256:')[:32]}-{hashlib.sha256(init).hexdigest()[:32]}"
            try:
                found = await self._look(tag)
            except MissingError:
                await self._daemon.call(
                    "The image could not be imported", lambda client: _import(client, image, init, tag), _IMPORT_S
                )
                found = await self._look(tag)
            self._ids[image.digest] = found
            return found

    def forget(self, image: Image) -> None:
        """The daemon has lost it (say, `docker image prune`): the next `ensure` looks again."""
        self._ids.pop(image.digest, None)

    async def _look(self, tag: str) -> str:
        found = await self._daemon.call(
            "The image could not be looked up", lambda client: client.inspect_image(f"{REPOSITORY}:{tag}")
        )
        return str(found["Id"])


def _import(client: APIClient, image: Image, init: bytes, tag: str) -> None:
    """`docker import`, streamed. Not by the SDK's own function, which would wait for ever for a daemon that hangs."""
    with contextlib.closing(_packed(image.rootfs, init)) as chunks:
        answer = client.post(
            f"{client.base_url}/v{client.api_version}/images/create",
            params={
                "fromSrc": "-",
                "repo": REPOSITORY,
                "tag": tag,
                "changes": [f"LABEL crucible.image={image.digest}"],
            },
            headers={"Content-Type": "application/x-tar"},
            data=chunks,
            timeout=_STALL_S,
        )
    if not answer.ok or '"error"' in answer.text:
        raise DaemonError(f"dockerd does not import the image: {answer.text[-300:].strip()}.")


def _packed(rootfs: Path, init: bytes) -> Generator[bytes]:
    """The tree and the init as one tar, in pieces; a thread packs while the pieces are sent."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    failures: list[Exception] = []
    packing = threading.Thread(target=_pack, args=(rootfs, init, write_end, failures), name="pack-image")
    packing.start()
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        while chunk := pipe.read(_CHUNK_BYTES):
            yield chunk
    packing.join()
    if failures:
        raise DaemonError(f"The image could not be packed: {failures[0]}.")


def _pack(rootfs: Path, init: bytes, write_end: int, failures: list[Exception]) -> None:
    try:
        with (
            os.fdopen(write_end, "wb") as pipe,
            tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            folder = tarfile.TarInfo(os.path.dirname(INIT)[1:])  # noqa: PTH120  # a path inside the image
            folder.type, folder.mode = tarfile.DIRTYPE, 0o700
            tar.addfile(folder)
            file = tarfile.TarInfo(INIT[1:])
            file.size, file.mode = len(init), 0o500
            tar.addfile(file, io.BytesIO(init))
            tar.add(rootfs, arcname=".", filter=_owned_by_root)
    except Exception as error:  # told by the thread that sends
        failures.append(error)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None  # no device and no socket
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
