import pytest

from tests.executor.support import Keys, RunningExecutor, running


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def executor(keys, tmp_path) -> RunningExecutor:
    async with running(keys, tmp_path / "state") as started:
        yield started
