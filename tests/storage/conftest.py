import pytest

from tests.storage.world import FakeClock, storage


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def world(tmp_path, clock):
    async with storage(tmp_path / "state", clock=clock) as opened:
        yield opened
