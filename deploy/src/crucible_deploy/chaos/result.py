"""What the chaos found."""

from collections import Counter
from dataclasses import dataclass, field

from crucible_deploy.chaos.judge import Wrong


@dataclass
class Chaos:
    """The result.

    Attributes:
        seed: repeats the programs, the faults and their moments, though not what the machine made of them.
        asked: how many programs were asked for; the long ones come beside them.
        database: what storage used.
        seconds: from the first program to the last.
        time_over: whether fewer than these began, or not every fault happened, because the time was over.
        accepted: evaluations that the stack took.
        endless: marks of the programs that came to no end, or of which nobody knows.
        faults: how often each happened.
        retried: evaluations with more than one attempt.
        given_up: evaluations that failed for the infrastructure at their last attempt.
        starts: sandboxes that the counting runsc wrote down.
        looks: how often it was looked what lives.
        wrong: what contradicts the promises; empty when all is well.
    """

    seed: int
    asked: int
    database: str = "SQLite"
    seconds: float = 0.0
    time_over: bool = False
    accepted: int = 0
    endless: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    given_up: int = 0
    starts: int = 0
    looks: int = 0
    wrong: list[Wrong] = field(default_factory=list)
