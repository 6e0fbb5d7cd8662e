from crucible_storage import audit_bench


async def test_the_bench_of_the_audit_log_measures_a_log_that_verifies(tmp_path):
    found = await audit_bench.measure(tmp_path, 1200)
    assert (found["records"], found["heads"]) == (1200, 3)
    assert 200 < found["bytes_per_record"] < 2000
    assert found["verify_seconds"] > 0
