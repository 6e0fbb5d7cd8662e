"""A cache whose runsc is a script: it writes down what it starts, with a copy of what it was given, then becomes runsc.

The executor cannot tell it from the real one, so what it wrote is a count of starts that no part of Crucible made.
"""

import os
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """\
#!/bin/bash
for argument in "$@"; do last=$argument; done
case " $* " in
*" run "*)
    echo "$(date +%s.%N) $last" >> {starts}/starts
    # The program arrives on standard input; tee is in the sandbox's cgroup and ends with it.
    exec {runsc} "$@" < <(exec tee {starts}/$last.program)
    ;;
esac
exec {runsc} "$@"
"""
_PARENT = Path("/var/tmp")  # noqa: S108  # services enter it; the names are random and made by mkdtemp
_PREFIX = "crucible-counted-"
MARK = b"evaluation-mark-"
"""A program that is to be counted holds this, then its own mark, then a quote or the end of the line."""


@dataclass(frozen=True)
class CountedRunsc:
    """The cache, to be given to a stack.

    Attributes:
        cache: its folder.
        starts: the folder with what was written down, readable by root alone.
    """

    cache: Path
    starts: Path

    @classmethod
    def make(cls, common: Path) -> "CountedRunsc":
        """One around the runsc, images and init of another cache; what killed makers left is removed."""
        _remove_leftovers()
        cache = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_PARENT))
        cache.chmod(0o755)
        for name in ("images", "init", "uv", "uv-cache"):
            (cache / name).symlink_to(common / name)
        folder = cache / "runsc" / "current"
        folder.mkdir(parents=True)
        starts = cache / "starts"
        starts.mkdir(mode=0o700)
        real = common / "runsc" / "current" / "runsc"
        (folder / "runsc").write_text(_SCRIPT.format(runsc=os.path.realpath(real), starts=starts))
        (folder / "runsc").chmod(0o755)
        return cls(cache, starts)

    def remove(self) -> None:
        """Removes the folder; what it links to stays."""
        shutil.rmtree(self.cache)

    def sandboxes(self) -> list[str]:
        """The id of every sandbox that was started, in order."""
        file = self.starts / "starts"
        return [line.split()[1] for line in file.read_text().splitlines()] if file.exists() else []

    def by_mark(self) -> dict[str, list[str]]:
        """Which sandboxes were given the program with which mark, in the order of their starts."""
        found = defaultdict(list)
        for sandbox in self.sandboxes():
            mark = self.mark(sandbox)
            if mark is not None:
                found[mark].append(sandbox)
        return dict(found)

    def mark(self, sandbox: str) -> str | None:
        """The mark of the program that this sandbox was given; None when it has none, or not yet."""
        file = self.starts / f"{sandbox}.program"
        given = file.read_bytes() if file.exists() else b""
        _, marked, after = given.partition(MARK)
        mark, _, _ = after.split(b"\n")[0].partition(b"'")
        return mark.decode() if marked else None


def _remove_leftovers() -> None:
    for left in _PARENT.glob(f"{_PREFIX}*-*"):
        maker = left.name.removeprefix(_PREFIX).partition("-")[0]
        if maker.isdecimal() and not Path("/proc", maker).exists():
            shutil.rmtree(left, ignore_errors=True)
