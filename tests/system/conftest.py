import os

import pytest

from crucible_deploy import private_homes
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from tests.system.local import LocalStack


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/system/" in item.nodeid:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="package")
def stack():
    """The real stack, shared by the tests that leave it as they found it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: starts each process as its own user")
    private_homes.remove_stale(Layout(Paths()))  # of a run that was killed before its stack came up
    local = LocalStack()
    try:
        local.up("--slots", "4")
        yield local
    finally:
        local.crucible("down")
        local.remove()


@pytest.fixture
async def client(stack):
    async with stack.client() as made:
        yield made
