"""What the soak tells."""

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from crucible_deploy.bench.machine import Machine
from crucible_deploy.soak.look import Look
from crucible_deploy.soak.verdict import Verdict

_PIPE_WIDTH = 120


@dataclass(frozen=True)
class Soaked:
    """The result.

    Attributes:
        machine: what it ran on.
        seconds: how long the runs took, without the looks.
        runs: how many ended.
        kinds: of these, by kind of program.
        wrong: those that did not end as they must, by kind and how they ended.
        looks: in order.
        verdicts: by figure.
    """

    machine: Machine
    seconds: float
    runs: int
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    looks: tuple[Look, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing grew and every program ended as it must."""
        return not self.wrong and not any(one.grew for one in self.verdicts)

    def as_json(self) -> str:
        """All of it."""
        verdicts = [asdict(one) | {"growth": _finite(one.growth), "grew": one.grew} for one in self.verdicts]
        return json.dumps(
            {
                "machine": asdict(self.machine),
                "runs": self.runs,
                "seconds": round(self.seconds, 1),
                "kinds": self.kinds,
                "wrong": self.wrong,
                "looks": [asdict(one) for one in self.looks],
                "verdicts": verdicts,
                "ok": self.ok,
            },
            indent=1,
        )


def print_soaked(soaked: Soaked) -> None:
    """Prints the table to stdout."""
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    table = Table(title=f"After {soaked.runs} runs", title_justify="left")
    for column in ("what", "first", "last", "growth", "grew"):
        table.add_column(column, overflow="fold")
    for one in soaked.verdicts:
        growth = "new" if _finite(one.growth) is None else f"{one.growth:+.1%}"
        verdict = ("GREW" if one.grew else "no") if one.judged else "not judged"
        table.add_row(one.name, f"{one.first:.1f}", f"{one.last:.1f}", growth, verdict)
    if not console.is_terminal:
        table.box = box.ASCII2
    console.print(table)
    for line in soaked.machine.lines():
        console.print(line, highlight=False)
    rate = soaked.runs / soaked.seconds if soaked.seconds else 0.0
    console.print(f"{soaked.runs} runs in {soaked.seconds:.0f} s, {rate:.1f} per s", highlight=False)
    for what, count in soaked.wrong.items():
        console.print(f"WRONG: {count} x {what}", highlight=False)
    told = "nothing that is judged grew, and every program ended as it must"
    console.print(told if soaked.ok else "FAILED", highlight=False)


def _finite(growth: float) -> float | None:
    return None if growth == float("inf") else growth
