"""One engine per test, on a run folder and a cgroup of the test's own; afterwards nothing may be left of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crucible_executor import cgroups
from crucible_executor.engines.base import Engine
from crucible_executor.engines.registry import Host
from crucible_executor.images import ImageStore
from tests.conformance import warm
from tests.conformance.promises import GUISES, NEED_ROOT, PROMISES

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*promises): a test for the engines that promise these")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_name" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("needs")
    needed = frozenset(mark.args if mark else ())
    metafunc.parametrize(
        "engine_name",
        [
            pytest.param(name, marks=[pytest.mark.root] if name in NEED_ROOT else [])
            for name, promised in PROMISES.items()
            if needed <= promised
        ],
    )


@pytest.fixture(scope="session")
def init_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built programs of `executor/init`."""
    target = tmp_path_factory.mktemp("init")
    built = subprocess.run([ROOT / "executor/init/build.sh", target], check=True, capture_output=True, text=True)
    return Path(built.stdout.strip())


@pytest.fixture(scope="session")
def images() -> Path:
    """The image store, with its images packed as the executor packs them at its start."""
    if os.geteuid() == 0:
        store = ImageStore(CACHE / "images")
        for name in store.names():
            asyncio.run(store.pack(name))
    return CACHE / "images"


@pytest.fixture
def host(init_dir: Path, images: Path) -> Host:
    unique = uuid.uuid4().hex[:12]
    shared_memory = Path("/dev/shm")
    runsc = sorted((CACHE / "runsc").glob("*/runsc"))
    return Host(
        runsc=runsc[-1] if runsc else Path("runsc"),
        init_dir=init_dir,
        images=images,
        run_dir=shared_memory / f"crucible-test-{unique}",
        cgroup=f"crucible-test-{unique}",
    )


@pytest.fixture
async def engine(engine_name: str, host: Host) -> AsyncIterator[Engine]:
    """The engine under test. A test that leaves a sandbox behind fails here."""
    made = warm.make(engine_name, host)
    yield made
    abandoned = await warm.make(engine_name, host).sweep()
    remove(host, engine_name)
    assert abandoned == 0


def remove(host: Host, engine_name: str) -> None:
    """Removes the test's own folders."""
    if engine_name in NEED_ROOT:
        cgroups.detect(host.cgroup).discard()
    own = host.run_dir / GUISES.get(engine_name, engine_name)
    for folder in (own / "empty", own, host.run_dir):
        if folder.exists():
            folder.rmdir()
