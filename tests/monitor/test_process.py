import asyncio
import os
import socket
import sys
from contextlib import suppress

import pytest

from tests.monitor.fake_log_servicer import name, until

PREFIX = "CRUCIBLE_MONITOR_"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
async def process(keys, storage, log):
    cert, key, ca = keys.files("monitor")
    values = {
        "TLS_CERT": cert,
        "TLS_KEY": key,
        "TLS_CA": ca,
        "LISTEN": f"127.0.0.1:{free_port()}",
        "ADMIN": f"127.0.0.1:{free_port()}",
        "STORAGE": f"127.0.0.1:{storage.port}",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment = kept | {PREFIX + name: str(value) for name, value in values.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crucible_monitor", env=environment, stderr=asyncio.subprocess.PIPE
    )
    await until(lambda: log.tails == 1, seconds=20)
    yield process
    with suppress(ProcessLookupError):
        process.kill()


async def ended(process):
    async with asyncio.timeout(20):
        _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


async def test_ends_cleanly_on_sigterm(process):
    process.terminate()
    code, stderr = await ended(process)
    assert code == 0
    assert "following the event log" in stderr


async def test_gap_in_the_log_ends_the_process_with_the_reason(process, log):
    log.hidden = {2}
    for _ in range(3):
        log.output(name(1))
    code, stderr = await ended(process)
    assert code == 1
    assert "the event log has a gap: 3 came where 2 was expected" in stderr
