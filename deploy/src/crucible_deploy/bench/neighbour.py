"""What a well-behaved program keeps of its throughput while another hits each limit: the executor's own measurement."""

import json
import os
from typing import Any

from crucible_deploy import verify
from crucible_deploy.bench import commands
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.stand import Stand
from crucible_deploy.spec import module_command

_MODULE = "crucible_executor.neighbour"
_MEASURED = (0, 1, 4)
_LIMIT_S = 900.0
_CLEANS_UP_S = 60.0
"""It has sandboxes, cgroups and a folder of its own."""


async def measure(stand: Stand) -> Measured:
    """Each of its runs stands between two alone; see `python -m crucible_executor.neighbour`."""
    await stand.full()
    layout = stand.stack.layout
    argv = [
        *module_command(verify.interpreter(layout), _MODULE), "--json",
        f"--rounds={stand.sizes.neighbour_rounds}", f"--seconds={stand.sizes.neighbour_s:g}",
    ]  # fmt: skip
    environment = os.environ | verify.environment(layout)
    done = await commands.run(argv, timeout_s=_LIMIT_S, environment=environment, grace_s=_CLEANS_UP_S)
    if done.returncode not in _MEASURED:
        raise BenchError(done.stderr.decode(errors="replace").strip()[-500:] or f"exit code {done.returncode}")
    return Measured(tuple(map(row, json.loads(done.stdout))))


def row(found: dict[str, Any]) -> Row:
    """The figure of one limit."""
    busy = "" if found["kept"] is not None else ": too busy to judge"
    return Row(
        f"a program beside one that hits its limit: {found['limit']}", found["beside"], "per s", found["alone"],
        "alone", ">= 0.85 x", met=found["kept"],
        note=f"{found['ratio']:.2f} x, median of the rounds; others used {found['others_cpus']:.2f} CPUs{busy}",
    )  # fmt: skip
