"""How programs of one language are started: a small declaration each. To add a runtime, add a line to `RUNTIMES`.

`python -m crucible_executor.runtimes` prints them as JSON, for those who keep this machine's images.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Runtime:
    """One language.

    Attributes:
        name: as callers name it.
        image: the name of the root file system it runs in.
        command: the start of the argv, absolute; the entry point and the arguments follow.
        reads_whole_file: it reads all of its entry point before it runs any of it, also from a pipe, and looks at no
            other file of the program before: it can be started before its program is there (`ahead.py`).
        needs_image: it is what its image holds: an engine whose programs see the host does not have it.
    """

    name: str
    image: str
    command: tuple[str, ...]
    reads_whole_file: bool = False
    needs_image: bool = False

    def argv(self, entrypoint: str, args: tuple[str, ...]) -> tuple[str, ...]:
        """The whole command for one program. An entry point is never read as an option."""
        path = f"./{entrypoint}" if entrypoint.startswith("-") else entrypoint
        return (*self.command, path, *args)


RUNTIMES = (
    Runtime("python", image="python", command=("/usr/bin/python3",), reads_whole_file=True),
    Runtime("bash", image="python", command=("/bin/bash",)),
    Runtime(
        "python-science", image="python-science", command=("/usr/bin/python3",), reads_whole_file=True, needs_image=True
    ),
    Runtime("node", image="node", command=("/usr/bin/node",)),
)

IMAGES = tuple(dict.fromkeys(runtime.image for runtime in RUNTIMES))
"""The only images that programs can run in, whatever else is in the store; first the one that every machine has."""

BASE_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/workspace",
    "LANG": "C.UTF-8",
}
"""What every program's environment has; a program's own values win."""


if __name__ == "__main__":
    print(json.dumps([asdict(runtime) for runtime in RUNTIMES]))  # noqa: T201  # what it is for
