"""One engine per test, on a run folder and a cgroup of the test's own; afterwards nothing may be left of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from crucible_deploy import docker_daemon
from crucible_deploy.docker_daemon import DockerDaemonError
from crucible_executor import cgroups
from crucible_executor.engines.base import Engine
from crucible_executor.engines.registry import Host
from crucible_executor.images import ImageStore
from crucible_executor.tracing.tracer import UNTRACED, Tracer, TracerPaths, Tracing
from tests.conformance import warm
from tests.conformance.matrix import Matrix
from tests.conformance.promises import GUISES, NEED_DOCKER, NEED_ROOT, PROMISES

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]
TRACE_READER = "daemon"  # any user but root; `crucible up` makes one of its own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engines-md", type=Path, help="write the conformance matrix of the tests that run to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*promises): a test for the engines that promise these")
    config.addinivalue_line("markers", "only(*engines): a test of these engines, whatever others promise")
    config.addinivalue_line("markers", "traced: a test that runs where programs are watched, if the engine can be")
    page = config.getoption("--engines-md", default=None)  # known only where this folder is named
    if page is not None:
        config.pluginmanager.register(Matrix(page))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_name" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("needs")
    needed = frozenset(mark.args if mark else ())
    only = metafunc.definition.get_closest_marker("only")
    metafunc.parametrize(
        "engine_name",
        [
            pytest.param(name, marks=[pytest.mark.root] if name in NEED_ROOT else [])
            for name, promised in PROMISES.items()
            if needed <= promised and (only is None or name in only.args)
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


@pytest.fixture(scope="session")
def docker_address() -> Iterator[str]:
    """A Docker daemon for all tests, with gVisor as its runtime `runsc`."""
    try:
        with docker_daemon.running(newest_runsc()) as daemon:
            yield daemon.address
    except DockerDaemonError as error:
        pytest.fail(f"{error}; `make test` installs it where there is none")


def newest_runsc() -> Path:
    found = sorted((CACHE / "runsc").glob("*/runsc"))
    return found[-1] if found else Path("runsc")


@pytest.fixture
async def host(init_dir: Path, images: Path, engine_name: str, request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    unique = uuid.uuid4().hex[:12]
    shared_memory = Path("/dev/shm")
    tracer: Tracing = UNTRACED
    if request.node.get_closest_marker("traced") and GUISES.get(engine_name, engine_name) == "gvisor":
        paths = TracerPaths(init_dir / "crucible-launch", TRACE_READER)
        tracer = Tracer(paths, cgroups.detect(f"crucible-test-{unique}-trace"))
    yield Host(
        runsc=newest_runsc(),
        init_dir=init_dir,
        images=images,
        run_dir=shared_memory / f"crucible-test-{unique}",
        cgroup=f"crucible-test-{unique}",
        docker_host=request.getfixturevalue("docker_address") if engine_name in NEED_DOCKER else "unix:///nowhere",
        tracer=tracer,
    )
    await tracer.close()


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
