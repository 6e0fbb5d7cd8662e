"""What storage alone does, in this process, over databases of its own: rates, and what a call costs in a full one.

`python -m crucible_storage.benchmark --folder DIR` prints JSON; everything is answered after its commit, as always.
With `--url` the databases are made on that PostgreSQL server. The part `artifact` is about the memory of a process of
storage that it starts.
"""

import argparse
import asyncio
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crucible_storage.benchmark import artifact, costs, rates, workers

PARTS = ("rates", "costs", "workers", "artifact")


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    folder, url = options.folder, options.url
    found: dict[str, Any] = {}
    for part in options.part or PARTS:
        if part == "rates":
            found[part] = asdict(await rates.measure(folder, url, options.count))
        elif part == "costs":
            found[part] = asdict(await costs.measure(folder, url, options.small, options.large, options.samples))
        elif part == "artifact":
            found[part] = asdict(await artifact.measure(folder, options.artifact_mib))
        else:
            found[part] = asdict(await workers.measure(folder, url, options.queue))
    return found


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="crucible_storage.benchmark", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder on the disk to be measured")
    parser.add_argument("--url", default="", help="of a PostgreSQL server, with {} where a database's name goes")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated")
    parser.add_argument("--count", type=int, default=2000, help="evaluations for each rate")
    parser.add_argument("--small", type=int, default=1000, help="evaluations stored in the smaller database")
    parser.add_argument("--large", type=int, default=100_000, help="in the larger one")
    parser.add_argument("--samples", type=int, default=200, help="calls of each kind")
    parser.add_argument("--queue", type=int, default=2000, help="evaluations that the workers work off")
    parser.add_argument("--artifact-mib", type=int, default=1024, help="MiB of the artifact that goes in and out")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    sys.stdout.write(json.dumps(asyncio.run(_measure(options))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
