"""What each engine promises. A test of something that an engine does not promise is not generated for it.

`test_engine_claims_exactly_what_is_tested_here` holds the engines to this table, so that nothing is claimed untested.
"""

from __future__ import annotations

import enum

import pytest

from crucible_executor.model import Limit


class Promise(enum.Enum):
    """What an engine may promise beside limits."""

    ISOLATION = "isolation"
    DOCKER = "docker"
    """Runs on a Docker daemon."""
    HOST_HIDDEN = "host hidden"
    """Nothing tells a program about the host's kernel or where the host keeps things."""
    SAMPLES = "samples"
    """What a run uses is sampled while it runs."""


Needed = Limit | Promise

PROMISES: dict[str, frozenset[Needed]] = {
    "gvisor": frozenset(Limit) - {Limit.DISK_INODES} | {Promise.ISOLATION, Promise.HOST_HIDDEN, Promise.SAMPLES},
    "gvisor-warm": frozenset(Limit) - {Limit.DISK_INODES} | {Promise.ISOLATION, Promise.HOST_HIDDEN, Promise.SAMPLES},
    "docker-gvisor": frozenset(Limit) - {Limit.DISK_INODES} | set(Promise),
    "docker": frozenset(Limit) | {Promise.ISOLATION, Promise.DOCKER, Promise.SAMPLES},
    "subprocess": frozenset({Limit.WALL_TIME, Limit.OUTPUT, Limit.OPEN_FILES}),
}

NEED_DOCKER = frozenset(name for name, promised in PROMISES.items() if Promise.DOCKER in promised)
NEED_ROOT = NEED_DOCKER | {"gvisor", "gvisor-warm"}

GUISES = {"gvisor-warm": "gvisor"}
"""The registry's name of an engine that is tested in another guise; see `tests.conformance.warm`."""


def needs(*needed: Needed) -> pytest.MarkDecorator:
    """Marks a test as one for the engines that promise all of `needed`; without the mark it is for every engine."""
    return pytest.mark.needs(*needed)


def only(*engines: str, why: str) -> pytest.MarkDecorator:
    """Marks a test as one for these engines, although others promise the same; the matrix then says `why`."""
    return pytest.mark.only(*engines, why=why)
