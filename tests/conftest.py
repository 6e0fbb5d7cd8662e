"""What every test needs: gRPC's setting, which must be there before grpc itself, and signals that reach our children.

A shell without job control starts what it puts in the background with SIGINT and SIGQUIT ignored, and a child inherits
that: a test that interrupts a command would then wait for ever.

With `-n` the tests of a folder or file that share something costly stay together, in the process that made it.
"""

import signal

import pytest
from xdist.scheduler import LoadScopeScheduling

import crucible_rpc  # noqa: F401  # first of ours: it sets GRPC_ENABLE_FORK_SUPPORT

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

SHARING = (
    "tests/system/",  # a stack
    "tests/attacks/test_suite.py",  # a run of the whole suite
    "tests/attacks/test_docker_suite.py",
    "tests/attacks/test_demonstrate.py",
)


class Scheduling(LoadScopeScheduling):
    """Hands out first what is together, the most first, then one test at a time."""

    def _split_scope(self, nodeid):
        return next((place for place in SHARING if nodeid.startswith(place)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)
