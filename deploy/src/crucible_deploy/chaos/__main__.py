"""`make chaos`: exit code 0 when every promise held, 1 when one did not, 130 after Ctrl-C."""

import argparse
import asyncio
import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from crucible_client import CallError
from crucible_deploy.chaos.faults import ChaosError, all_faults
from crucible_deploy.chaos.harness import Chaos, chaos
from crucible_deploy.interrupt import cancelled_by_signals
from crucible_deploy.layout import Layout
from crucible_deploy.prepare import EXPECTED_ERRORS


def _print(found: Chaos) -> None:
    lines = [
        f"seed {found.seed}: {found.accepted} evaluations accepted, all terminal, in {found.seconds:.0f} s",
        f"{found.retried} needed more than one attempt, {found.given_up} failed for the infrastructure at their last",
        f"{found.faults.total()} faults:",
        *(f"  {times:4d} x {name}" for name, times in sorted(found.faults.items())),
        *(f"WRONG: {one}" for one in found.wrong),
        "every promise held" if not found.wrong else "FAILED",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


async def _run(common: Layout, say: Callable[[str], None], options: argparse.Namespace) -> int:
    try:
        with cancelled_by_signals():
            found = await chaos(common, say, seed=options.seed, count=options.count, faults=all_faults())
    except asyncio.CancelledError:
        say("interrupted; the stack is down and nothing of it is left")
        return 130
    if options.json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        _print(found)
    return 1 if found.wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chaos; returns the exit code."""
    parser = argparse.ArgumentParser(prog="chaos", description="Faults at random moments, judged from outside.")
    parser.add_argument("--count", type=int, default=2000, help="how many programs; default 2000")
    parser.add_argument("--seed", type=int, help="of the programs and the faults; default: a new one, which is printed")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error("--count must be at least 1")
    if options.seed is None:
        options.seed = secrets.randbelow(1 << 31)

    def say(text: str) -> None:
        sys.stderr.write(f"chaos: {text}\n")

    say(f"seed {options.seed}")
    try:
        return asyncio.run(_run(Layout.of(os.environ), say, options))
    except (*EXPECTED_ERRORS, ChaosError, CallError, TimeoutError, OSError) as error:
        say(str(error) or "an evaluation was stuck")
        return 1


if __name__ == "__main__":
    sys.exit(main())
