import pytest

from tests.executor.support import Keys, running
from tests.worker.support import MemoryStorage, serving_storage, working


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def executor(keys, tmp_path):
    async with running(keys, tmp_path / "state") as started:
        yield started


@pytest.fixture
async def storage(keys):
    memory = MemoryStorage(keys)
    async with serving_storage(keys, memory) as port:
        memory.port = port
        yield memory


@pytest.fixture
async def worker(keys, storage, executor):
    async with working(keys, storage.port, executor.service.port) as started:
        yield started
