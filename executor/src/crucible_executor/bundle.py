"""The OCI bundle of a sandbox: what runsc is told to build around the init. Nothing in it comes from a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crucible_executor.images import Image
from crucible_executor.model import SandboxClass

HOST_NAME = "sandbox"
PROGRAM_ID = 65534

# The init changes users, drops the bounding set, and kills what is left; a program gets none of it.
_INIT_CAPABILITIES = ["CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"]
_OWNED = ["uid=65534", "gid=65534"]


def config(image: Image, sandbox_class: SandboxClass, *, empty_root: Path) -> bytes:
    """The bundle's `config.json`.

    `/workspace`, `/tmp` and `/dev/shm` are separate tmpfs of `disk_bytes` each, kept by the sentry in the sandbox's
    memory cgroup. `empty_root` is an empty folder of the host, the formal root where the image is one EROFS file.
    """
    document: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            # A bare name, no path: runsc executes the init from a descriptor (--exec-fd).
            "args": ["crucible-init"],
            "env": [],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _INIT_CAPABILITIES),
        },
        "root": {"path": str(image.rootfs if image.erofs is None else empty_root), "readonly": True},
        "hostname": HOST_NAME,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _tmpfs("/workspace", sandbox_class.disk_bytes, "mode=0755", *_OWNED),
            _tmpfs("/tmp", sandbox_class.disk_bytes, "mode=1777"),  # noqa: S108  # the sandbox's own
            _tmpfs("/dev/shm", sandbox_class.disk_bytes, "mode=1777"),  # noqa: S108  # for semaphores
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }
    if image.erofs is not None:
        document["annotations"] = {
            "dev.gvisor.spec.rootfs.source": str(image.erofs),
            "dev.gvisor.spec.rootfs.type": "erofs",
        }
    return json.dumps(document).encode()


def _tmpfs(destination: str, size_bytes: int, *options: str) -> dict[str, object]:
    return {
        "destination": destination,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", f"size={size_bytes}", *options],
    }
