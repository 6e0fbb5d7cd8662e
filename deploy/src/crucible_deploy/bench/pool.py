"""How full an executor's pool is, by its own metrics, and waiting until it is full."""

import asyncio
import time
import urllib.request

from crucible_client import AsyncClient
from crucible_deploy.bench import load
from crucible_deploy.bench.commands import to_the_end
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.private_stack import PrivateStack

_FULL_S = 120.0
_LOOK_S = 0.1
_REMEMBERED = 33
"""Requests after which an executor's idea of what is asked for holds these alone."""


async def fill(stack: PrivateStack, client: AsyncClient, size: int) -> None:
    """Makes the trivial program the only thing that was asked for lately, and waits until `size` sandboxes wait for it.

    Raises:
        BenchError: that did not happen in time.
    """
    await load.many(client, [load.trivial()] * _REMEMBERED, 4)
    await until_full(stack, size)


async def until_full(stack: PrivateStack, size: int) -> None:
    """Waits until `size` sandboxes wait; what is booting then contends with nothing.

    Raises:
        BenchError: that did not happen in time.
    """
    deadline = time.monotonic() + _FULL_S
    while (waiting := await waiting_now(stack)) < size:
        if time.monotonic() > deadline:
            raise BenchError(f"only {waiting} of {size} sandboxes were booted ahead within {_FULL_S:g} s")
        await asyncio.sleep(_LOOK_S)


async def waiting_now(stack: PrivateStack, engine: str = "gvisor") -> int:
    """How many sandboxes wait now."""
    text = await to_the_end(lambda: _metrics(stack.layout.admin_address("executor")))
    return int(sample(text, f'crucible_executor_pool_size{{engine="{engine}"}}'))


def sample(text: str, name: str) -> float:
    """The value of one time series in a page of metrics; 0 when it is not there."""
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series == name:
            return float(value)
    return 0.0


def _metrics(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:  # loopback
        return str(answer.read(1 << 20), "utf-8")
