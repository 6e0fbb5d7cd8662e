"""What the stack can prove of itself when all is over: its database by its events, and its audit log by its heads."""

import asyncio
import os
import sys

from crucible_client import AsyncClient, CallError
from crucible_client.audit import AuditFinding
from crucible_deploy.chaos.judge import Promise, Wrong
from crucible_deploy.layout import Layout

_CHECK_SECONDS = 300.0
_SHOWN = 2000


async def failed(layout: Layout, client: AsyncClient) -> list[Wrong]:
    """What does not prove, or cannot be asked; empty when all does.

    Args:
        layout: of a stack that runs.
        client: of an administrator.
    """
    try:
        found = [one.message async for one in client.verify_audit() if isinstance(one, AuditFinding)]
    except CallError as error:
        found = [f"the audit log cannot be verified: {error}"]
    wrong = [Wrong(Promise.AUDIT, one) for one in found]
    try:
        code, said = await _check(layout)
    except TimeoutError:
        code, said = None, f"nothing: it took longer than {_CHECK_SECONDS:.0f} s"
    if code != 0:
        wrong.append(Wrong(Promise.REBUILT, f"crucible storage check exited with {code}: {said[-_SHOWN:]}"))
    return wrong


async def _check(layout: Layout) -> tuple[int | None, str]:
    ours = {
        "CRUCIBLE_HOME": str(layout.home),
        "CRUCIBLE_CACHE": str(layout.paths.cache),
        "CRUCIBLE_PORT_OFFSET": str(layout.port_offset),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")} | ours
    check = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crucible_client", "storage", "check"),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            said, _ = await check.communicate()
    finally:
        if check.returncode is None:
            check.kill()
            await check.wait()
    return check.returncode, said.decode(errors="replace").strip()
