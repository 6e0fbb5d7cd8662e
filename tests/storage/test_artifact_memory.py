"""Storage's memory does not grow with the size of an artifact; `make bench` measures a larger one."""

import pytest

from crucible_storage.benchmark import artifact

pytestmark = [pytest.mark.database("sqlite"), pytest.mark.slow]


async def test_an_artifact_of_any_size_goes_in_and_out_through_bounded_memory(tmp_path):
    found = await artifact.measure(tmp_path, 192)
    assert found.stored_mib - found.before_mib < 96
    assert found.read_mib - found.before_mib < 112
