"""Where Crucible keeps things on one machine. Standard library only: `make uninstall` runs without the environment."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MARKER = ".crucible"
"""Name of the file that marks a folder as made by Crucible; only such folders are ever removed."""

DEFAULT_HOME = Path("/var/lib/crucible")
DEFAULT_CACHE = Path("/var/cache/crucible")


@dataclass(frozen=True)
class Paths:
    """The folders of one installation.

    `home` holds its state and keys, `cache` holds built things by version, `run` holds what dies with the machine.
    """

    home: Path = DEFAULT_HOME
    cache: Path = DEFAULT_CACHE
    run: Path = Path("/run/crucible")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Paths":
        """The paths that `CRUCIBLE_HOME` and `CRUCIBLE_CACHE` name, or the defaults when unset or empty.

        Raises:
            ValueError: one of them is no absolute path.
        """
        found = {}
        for field, variable, default in (
            ("home", "CRUCIBLE_HOME", DEFAULT_HOME),
            ("cache", "CRUCIBLE_CACHE", DEFAULT_CACHE),
        ):
            path = Path(environment.get(variable) or default)
            if not path.is_absolute():
                raise ValueError(f"{variable} must be an absolute path, not {str(path)!r}")
            found[field] = Path(os.path.normpath(path))
        return cls(**found)

    @property
    def runsc(self) -> Path:
        """The runsc in use: `runsc/current` is a link to the folder of its version."""
        return self.cache / "runsc" / "current" / "runsc"

    @property
    def init(self) -> Path:
        """The folder of the sandbox's init in use, a link to the build of the current sources."""
        return self.cache / "init" / "current"

    @property
    def images(self) -> Path:
        """The store of root file systems."""
        return self.cache / "images"

    @property
    def uv(self) -> Path:
        """The pinned uv."""
        return self.cache / "uv" / versions()["UV_VERSION"] / "bin" / "uv"

    @property
    def uv_cache(self) -> Path:
        """What uv has downloaded, whichever home its caller had."""
        return self.cache / "uv-cache"


def mark(folder: Path) -> None:
    """Marks a folder as made by Crucible, so that `make uninstall` may remove it."""
    marker = folder / MARKER
    if not marker.is_file():
        marker.write_text("Made by Crucible; make uninstall removes it.\n")
        marker.chmod(0o644)


def is_marked(folder: Path) -> bool:
    """Whether Crucible made this folder."""
    return not folder.is_symlink() and (folder / MARKER).is_file()


def versions() -> dict[str, str]:
    """The pinned versions of what set-up installs (`versions.env`, which the shell part reads too)."""
    lines = Path(__file__).with_name("versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while piece := stream.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()
