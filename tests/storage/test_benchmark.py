"""Storage's own benchmark: measures what it says, and refuses nothing to itself."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_benchmark_measures_everything_over_databases_of_its_own(tmp_path, databases):
    sizes = ["--count", "64", "--small", "20", "--large", "60", "--samples", "5", "--queue", "80"]
    sizes += ["--artifact-mib", "2"]
    command = [sys.executable, "-m", "crucible_storage.benchmark", "--folder", str(tmp_path), *sizes]
    if databases.name == "postgresql":
        for name in ("rates", "small", "large", "workers"):
            databases.server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        command += ["--url", databases.server.postgresql.url("{}")]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    artifact, audit = found["artifact"], found["costs"]["audit"]
    assert artifact["mib"] == 2
    assert 0 < artifact["before_mib"] <= artifact["stored_mib"] <= artifact["read_mib"]
    assert audit["records"] == 60 + 2 + 5  # of the evaluations, their two batches and the samples
    assert audit["heads"] >= 1
    assert 200 < audit["bytes_per_record"] < 5000
    rates, costs, workers = found["rates"], found["costs"], found["workers"]
    assert min(rates.values()) > 0
    assert set(costs["costs"]) == {"get", "page", "create", "lease"}
    assert all(cost["small_ms"] > 0 and cost["large_ms"] > 0 for cost in costs["costs"].values())
    assert (costs["small"], costs["large"], costs["samples"]) == (20, 60, 5)
    assert (workers["queued"], workers["lost"], workers["run_twice"]) == (80, 0, 0)
    assert list(workers["per_s"]) == ["1", "2", "4", "8"]
