"""A cache whose runsc is a script: it writes down what it starts, with a copy of what it was given, then becomes runsc.

The executor cannot tell it from the real one, so what it wrote is a count of starts that no part of Crucible made.
"""

import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy.paths import DEFAULT_CACHE

SCRIPT = """\
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
MARK = b"evaluation-mark-"


@dataclass
class CountedRunsc:
    """Attributes: `cache`, to be given to a stack; `starts`, the folder with what was written down."""

    cache: Path
    starts: Path

    @classmethod
    def make(cls) -> "CountedRunsc":
        cache = Path(tempfile.mkdtemp(prefix="crucible-counted-", dir="/var/tmp"))
        cache.chmod(0o755)
        for name in ("images", "init"):
            (cache / name).symlink_to(DEFAULT_CACHE / name)
        folder = cache / "runsc" / "current"
        folder.mkdir(parents=True)
        starts = cache / "starts"
        starts.mkdir(mode=0o700)
        real = DEFAULT_CACHE / "runsc" / "current" / "runsc"
        (folder / "runsc").write_text(SCRIPT.format(runsc=os.path.realpath(real), starts=starts))
        (folder / "runsc").chmod(0o755)
        return cls(cache, starts)

    def sandboxes(self) -> list[str]:
        """The id of every sandbox that was started, in order."""
        return [line.split()[1] for line in (self.starts / "starts").read_text().splitlines()]

    def by_mark(self) -> dict[str, list[str]]:
        """Which sandboxes were given the program with which mark."""
        found = defaultdict(list)
        for sandbox in self.sandboxes():
            file = self.starts / f"{sandbox}.program"
            given = file.read_bytes() if file.exists() else b""
            at = given.find(MARK)
            if at >= 0:
                found[given[at + len(MARK) :].split(b"\n")[0].split(b"'")[0].decode()].append(sandbox)
        return dict(found)
