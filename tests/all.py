"""`make test`: every test, in two parts, and one line that says how many passed.

What needs nothing of the machine but a CPU runs in as many processes as there are; then, alone, what starts sandboxes,
daemons and stacks, and watches the host meanwhile.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

APART = ("client", "gateway", "monitor", "rpc", "storage", "worker")
ALONE = ("attacks", "conformance", "deploy", "executor", "system")
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def run(*arguments: str) -> tuple[int, Counter[str]]:
    """Runs pytest with its output passed on; answers its exit code and what its last line counts."""
    last = ""
    command = [sys.executable, "-m", "pytest", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as pytest:
        assert pytest.stdout is not None
        for line in pytest.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            last = line if line.startswith("=") else last
    return pytest.returncode, Counter({kind.rstrip("s"): int(count) for count, kind in _COUNT.findall(last)})


def folders(names: tuple[str, ...]) -> list[str]:
    """These folders of tests."""
    return [f"tests/{name}" for name in names]


def main() -> int:
    """Runs both parts, also when the first fails; the exit code is 0 when both passed."""
    there = {file.parent.name for file in Path("tests").glob("*/test_*.py")}
    if there != {*APART, *ALONE}:
        print("tests/all.py does not name the folders that hold tests:", ", ".join(sorted(there ^ {*APART, *ALONE})))
        return 1
    processes = str(max(2, len(os.sched_getaffinity(0))))
    parts = [run("-n", processes, *folders(APART)), run(*folders(ALONE))]
    counts = sum((counts for _, counts in parts), Counter())
    print(", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "error", "skipped")), "in both parts")
    return max(code for code, _ in parts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
