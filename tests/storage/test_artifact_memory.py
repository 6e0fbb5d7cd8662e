"""Storage's memory does not grow with the size of an artifact; `artifact_memory` measures a larger one."""

import pytest

from tests.storage import artifact_memory

pytestmark = pytest.mark.database("sqlite")
MIB = artifact_memory.MIB


async def test_an_artifact_of_any_size_goes_in_and_out_through_bounded_memory(tmp_path):
    before, middle, after, _, _ = await artifact_memory.measure(tmp_path, pieces=192)
    assert middle - before < 96 * MIB
    assert after - before < 112 * MIB
