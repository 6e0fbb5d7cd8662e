"""Which runtimes an executor offers, and why it cannot start the others."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from crucible_executor import runtimes
from crucible_executor.catalog import Catalog, OfferedEngine, offer_runtimes
from crucible_executor.engines.base import Capabilities, Engine, Sandbox
from crucible_executor.model import Isolation, SandboxClass
from crucible_executor.runtimes import RUNTIMES, Runtime
from crucible_rpc.errors import FailedPreconditionError

DIGEST = "sha256:" + "a" * 64


class Named(Engine):
    def __init__(self, name: str, isolation: Isolation) -> None:
        self._capabilities = Capabilities(name, "1", isolation, frozenset())

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def check(self) -> None:
        return None

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        raise AssertionError

    async def sweep(self) -> int:
        return 0


class Images:
    def __init__(self, *names: str) -> None:
        self._names = names

    def digest(self, image: str) -> str | None:
        return DIGEST if image in self._names else None


ISOLATED, HOST = Named("isolated", Isolation.USER_KERNEL), Named("host", Isolation.NONE)
DECLARED = (
    Runtime("here", image="here", command=("/bin/sh",)),
    Runtime("absent", image="absent", command=("/bin/sh",)),
    Runtime("nowhere", image="absent", command=("/nonexistent/tool",)),
    Runtime("special", image="absent", command=("/bin/sh",), needs_image=True),
)


def catalog(*engines: Engine) -> Catalog:
    offered = [OfferedEngine(engine, "") for engine in engines]
    return Catalog(offered, offer_runtimes(DECLARED, Images("here"), offered), engines[0].capabilities.name)


def test_every_runtime_is_listed_and_one_without_its_image_says_how_to_get_it():
    made = catalog(ISOLATED)
    assert {name: bool(one.unavailable) for name, one in made.runtimes.items()} == {
        "here": False, "absent": True, "nowhere": True, "special": True,
    }  # fmt: skip
    assert "crucible images build absent" in made.runtimes["absent"].unavailable
    assert made.runtime("here", ISOLATED) == (DECLARED[0], DIGEST)
    with pytest.raises(FailedPreconditionError, match="crucible images build absent") as caught:
        made.runtime("absent", ISOLATED)
    assert caught.value.reason == "RUNTIME_NOT_AVAILABLE"
    with pytest.raises(FailedPreconditionError, match="no runtime 'other'"):
        made.runtime("other", ISOLATED)


def test_an_engine_that_uses_the_host_has_what_the_host_has_and_nothing_else():
    made = catalog(ISOLATED, HOST)
    assert {name for name, one in made.runtimes.items() if one.unavailable} == {"nowhere", "special"}
    assert made.runtime("absent", HOST) == (DECLARED[1], "")
    for name, why in (("nowhere", "/nonexistent/tool"), ("special", "its image absent holds")):
        with pytest.raises(FailedPreconditionError, match=why):
            made.runtime(name, HOST)
    with pytest.raises(FailedPreconditionError, match="its image absent is not here"):
        made.runtime("absent", ISOLATED)


def test_declarations_are_told_to_those_who_keep_the_images():
    done = subprocess.run(
        [sys.executable, "-I", "-m", "crucible_executor.runtimes"], capture_output=True, check=True, env={}, cwd="/"
    )
    told = {one["name"]: one["image"] for one in json.loads(done.stdout)}
    assert told == {one.name: one.image for one in RUNTIMES}
    assert runtimes.IMAGES[0] == "python"
    assert set(told.values()) == set(runtimes.IMAGES)
