"""A PostgreSQL server for tests leaves nothing, however its test run ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crucible_deploy import postgresql_server

pytestmark = pytest.mark.slow

_STARTS = """
import sys, time
from pathlib import Path
from crucible_deploy.postgresql_server import PostgreSqlServer
server = PostgreSqlServer(folder=Path(sys.argv[1]))
server.start()
print((server.log.parent / "data" / "postmaster.pid").read_text().split()[0], flush=True)
time.sleep(600)
"""


def test_it_ends_with_a_starter_that_was_killed_and_the_next_one_removes_its_folder(home):
    folder = home.parent  # where every user gets, with a name short enough for a socket
    starter = subprocess.Popen([sys.executable, "-c", _STARTS, str(folder)], stdout=subprocess.PIPE, text=True)
    server = Path("/proc", starter.stdout.readline().strip())
    assert (server / "exe").readlink().name == "postgres"
    if os.geteuid() == 0:
        assert server.stat().st_uid != 0
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    deadline = time.monotonic() + 30
    while server.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    [left] = folder.iterdir()
    with postgresql_server.running(folder=folder) as another:
        assert not left.exists()
        assert "listen_addresses" not in (another.log.parent / "data" / "postgresql.auto.conf").read_text()
        assert list(another.log.parent.glob(".s.PGSQL.*"))
    assert list(folder.iterdir()) == []
