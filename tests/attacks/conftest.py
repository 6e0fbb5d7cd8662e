"""What the suite is told of this machine."""

import os
import subprocess

import pytest

from tests.attacks.suite_runs import CACHE, ROOT


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    init = tmp_path_factory.mktemp("init")
    built = subprocess.run([ROOT / "executor/init/build.sh", init], check=True, capture_output=True, text=True)
    return {
        "PATH": os.environ["PATH"],
        "CRUCIBLE_EXECUTOR_TRACE_USER": "daemon",  # which no stack makes or removes meanwhile
        "CRUCIBLE_EXECUTOR_RUNSC": str(sorted((CACHE / "runsc").glob("*/runsc"))[-1]),
        "CRUCIBLE_EXECUTOR_INIT_DIR": built.stdout.strip(),
        "CRUCIBLE_EXECUTOR_IMAGES_DIR": str(CACHE / "images"),
    }
