"""The programs that run meanwhile: each says its own mark, so that the judge knows what every one must print."""

import random
from dataclasses import dataclass
from datetime import timedelta

from crucible_client import EvaluationSpec, File, Limits, Program
from crucible_deploy.chaos.counted_runsc import MARK

_TALKS = """
# {before}{mark}'
import time
for _ in range({lines}):
    print('{mark}', flush=True)
    time.sleep(0.1)
raise SystemExit({code})
"""
_LIMITS = Limits(memory_bytes=128 << 20, wall_time=timedelta(seconds=60))


@dataclass(frozen=True)
class Case:
    """A program, and what it must come to.

    Attributes:
        mark: its own.
        spec: to be submitted.
        stdout: all that it prints.
        code: its exit code.
    """

    mark: str
    spec: EvaluationSpec
    stdout: bytes
    code: int


def case(mark: str, chance: random.Random, *, seconds: float | None = None) -> Case:
    """One that prints for up to 1.2 s, or for as long as said, and ends with a code of 0 or, one in five, 7."""
    lines = chance.randint(1, 12) if seconds is None else round(seconds * 10)
    code = 7 if chance.random() < 0.2 else 0
    source = _TALKS.format(before=MARK.decode(), mark=mark, lines=lines, code=code)
    program = Program("python", (File("main.py", source.encode()),))
    return Case(mark, EvaluationSpec(program, limits=_LIMITS), f"{mark}\n".encode() * lines, code)
