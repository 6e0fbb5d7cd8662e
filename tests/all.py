"""`make test`: every test, in two parts, and one line that says how many passed.

First, in as many processes as there are CPUs, all that looks only at what is its own: its folders, ports, cgroups,
sandboxes, daemons. Then, with nothing beside it, what is marked `alone`.
"""

import os
import re
import subprocess
import sys
from collections import Counter

_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def run(*arguments: str) -> tuple[int, Counter[str]]:
    """Runs pytest with its output passed on; answers its exit code and what its last line counts.

    Ctrl-C reaches pytest as it reaches us; we end after it, so that nothing is left behind that it was yet to remove.
    """
    last = ""
    command = [sys.executable, "-m", "pytest", *arguments]
    pytest = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
    assert pytest.stdout is not None
    try:
        for line in pytest.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            last = line if line.startswith("=") else last
    finally:
        pytest.wait()
    return pytest.returncode, Counter({kind.rstrip("s"): int(count) for count, kind in _COUNT.findall(last)})


def main() -> int:
    """Runs both parts, also when the first fails; the exit code is 0 when both passed."""
    processes = str(max(2, len(os.sched_getaffinity(0))))
    parts = [run("-n", processes, "-m", "not alone"), run("-m", "alone")]
    counts = sum((counts for _, counts in parts), Counter())
    print(", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "error", "skipped")), "in both parts")
    return int(any(code for code, _ in parts))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
