"""Mounts below a folder, and how to remove a folder that may hold some. Standard library only."""

import os
import shutil
import subprocess
from pathlib import Path


def below(folder: Path) -> list[Path]:
    """The mount points at or below `folder`, deepest first."""
    root = os.fsencode(folder.resolve())
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = _unescape(line.split()[4])
        if point == root or point.startswith(root + b"/"):
            found.append(Path(os.fsdecode(point)))
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def _unescape(field: bytes) -> bytes:
    r"""Undoes the kernel's `\040` for a blank and the like."""
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def unmount_below(folder: Path) -> list[Path]:
    """Unmounts everything at or below `folder`; returns what was unmounted.

    Raises:
        OSError: a mount could not be removed.
    """
    points = below(folder)
    # A mount over a mount is listed twice and is taken off twice.
    for point in points:
        done = subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(f"cannot unmount {point}: {done.stderr.strip()}")
    return points


def remove_tree(path: Path) -> None:
    """Removes a file or a folder with all below it, after all mounts below it are gone.

    Raises:
        OSError: something could not be unmounted or removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    unmount_below(path)
    # What is on another file system even now would be lost for good: better to stop than to delete it.
    if still := below(path):
        raise OSError(f"{still[0]} is still mounted")
    shutil.rmtree(path)
