"""`make chaos`: exit code 0 when every promise held, 1 when one did not, 130 after Ctrl-C."""

import argparse
import asyncio
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta

from crucible_client import CallError
from crucible_deploy import postgresql_server
from crucible_deploy.chaos import report
from crucible_deploy.chaos.database_faults import database_faults
from crucible_deploy.chaos.faults import ChaosError, all_faults
from crucible_deploy.chaos.harness import WITHIN, chaos
from crucible_deploy.interrupt import cancelled_by_signals
from crucible_deploy.layout import Layout
from crucible_deploy.postgresql_server import PostgreSqlServer, PostgreSqlServerError
from crucible_deploy.prepare import EXPECTED_ERRORS

_MOST_MINUTES = 24 * 60


async def _run(common: Layout, say: Callable[[str], None], options: argparse.Namespace) -> int:
    try:
        with cancelled_by_signals(), _server(options.database) as server:
            faults = [*all_faults(), *(database_faults(server) if server is not None else ())]
            within = timedelta(minutes=options.minutes)
            found = await chaos(
                common, say, seed=options.seed, count=options.count, faults=faults, server=server, within=within
            )
    except asyncio.CancelledError:
        say("interrupted; the stack is down and nothing of it is left")
        return 130
    text = json.dumps(asdict(found), indent=1) if options.json else "\n".join(report.lines(found))
    sys.stdout.write(text + "\n")
    return 1 if found.wrong else 0


@contextmanager
def _server(database: str) -> Iterator[PostgreSqlServer | None]:
    if database == "sqlite":
        yield None
        return
    with postgresql_server.running(durable=True) as server:
        yield server


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chaos; returns the exit code."""
    parser = argparse.ArgumentParser(prog="chaos", description="Faults at random moments, judged from outside.")
    parser.add_argument("--count", type=int, default=2000, help="how many programs; default 2000")
    parser.add_argument(
        "--minutes", type=int, default=WITHIN // timedelta(minutes=1),
        help="no program begins later than this; what began is brought to its end and judged; default %(default)d",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="of the programs and the faults; default: a new one, which is printed")
    parser.add_argument(
        "--database", choices=("sqlite", "postgresql"), default="sqlite",
        help="what storage uses; postgresql: a server of its own, which is restarted, crashed and cut off as well",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error("--count must be at least 1")
    if not 1 <= options.minutes <= _MOST_MINUTES:
        parser.error(f"--minutes must be from 1 to {_MOST_MINUTES}")
    if options.seed is None:
        options.seed = secrets.randbelow(1 << 31)

    def say(text: str) -> None:
        sys.stderr.write(f"chaos: {text}\n")

    say(f"seed {options.seed}")
    try:
        return asyncio.run(_run(Layout.of(os.environ), say, options))
    except (*EXPECTED_ERRORS, ChaosError, PostgreSqlServerError, CallError, TimeoutError, OSError) as error:
        say(str(error) or "what the stack proves of itself took too long")
        return 1


if __name__ == "__main__":
    sys.exit(main())
