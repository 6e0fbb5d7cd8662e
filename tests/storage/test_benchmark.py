"""Storage's own benchmark: measures what it says, and refuses nothing to itself."""

import json
import subprocess
import sys


def test_benchmark_measures_everything_over_databases_of_its_own(tmp_path, databases):
    sizes = ["--count", "64", "--small", "20", "--large", "60", "--samples", "5"]
    command = [sys.executable, "-m", "crucible_storage.benchmark", "--folder", str(tmp_path), *sizes]
    if databases.name == "postgresql":
        for name in ("rates", "small", "large"):
            databases.server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        command += ["--url", databases.server.postgresql.url("{}")]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert set(found["costs"]) == {"get", "page", "create", "lease"}
    assert all(cost["small_ms"] > 0 and cost["large_ms"] > 0 for cost in found["costs"].values())
    assert min(found["created_per_s"], found["lived_per_s"], found["lived_cpu_ms"], found["lease_p99_ms"]) > 0
    assert (found["small"], found["large"], found["lease_samples"]) == (20, 60, 5)
