"""Stops and thaws what is in a folder of the v2 hierarchy or of v1's freezer controller."""

from __future__ import annotations

from pathlib import Path

from crucible_executor.cgroups.files import field, read, write


def set_frozen(folder: Path, frozen: bool) -> None:
    """Stops or thaws what is in a folder of v2 or of v1's freezer; letting go what is gone is nothing."""
    try:
        write(f"{folder}/cgroup.freeze", int(frozen))
    except FileNotFoundError:
        try:
            write(f"{folder}/freezer.state", "FROZEN" if frozen else "THAWED")
        except FileNotFoundError:
            if frozen:
                raise


def is_frozen(folder: Path) -> bool:
    """Whether everything in a folder of v2 or of v1's freezer has stopped."""
    return field(folder / "cgroup.events", "frozen") == 1 or read(folder / "freezer.state").strip() == "FROZEN"
