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


Needed = Limit | Promise

PROMISES: dict[str, frozenset[Needed]] = {
    "gvisor": frozenset(Limit) - {Limit.DISK_INODES} | {Promise.ISOLATION},
    "gvisor-warm": frozenset(Limit) - {Limit.DISK_INODES} | {Promise.ISOLATION},
    "subprocess": frozenset({Limit.WALL_TIME, Limit.OUTPUT, Limit.OPEN_FILES}),
}

NEED_ROOT = frozenset({"gvisor", "gvisor-warm"})

GUISES = {"gvisor-warm": "gvisor"}
"""The registry's name of an engine that is tested in another guise; see `tests.conformance.warm`."""


def needs(*needed: Needed) -> pytest.MarkDecorator:
    """Marks a test as one for the engines that promise all of `needed`; without the mark it is for every engine."""
    return pytest.mark.needs(*needed)
