"""The suite's results as lines of JSON, each as it comes, for a program that reads them: `--lines`.

{"kind": "attempt", …}    as in `report.as_json`, one per attempt
{"kind": "summary", …}    the last
"""

from __future__ import annotations

import json
import sys

from crucible_executor.verify import report
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_executor.verify.model import ControlFinding, Finding, Verdict


class Lines:
    """In the place of the progress on stderr."""

    def finding(self, one: Finding) -> None:
        """Writes one finding."""
        write({
            "kind": "attempt", "name": one.attempt.name, "family": one.attempt.family.name,
            "breach": one.attempt.breach, "verdict": one.verdict.value, "promised": one.promised,
            "evidence": one.evidence, "seconds": round(one.seconds, 3),
        })  # fmt: skip

    def control(self, one: ControlFinding) -> None:
        """Controls are never run for a program: they are the offline command's."""


def summary(made: report.Report) -> None:
    """Writes the end."""
    counts = {verdict.value: sum(1 for one in made.findings if one.verdict is verdict) for verdict in Verdict}
    write({
        "kind": "summary", "engine": made.engine, "version": made.version, "isolation": made.isolation,
        "counts": counts, "short": sum(1 for one in made.findings if one.short_of_promise), "known": len(ATTEMPTS),
        "seconds": round(made.seconds, 3),
    })  # fmt: skip


def write(record: dict[str, object]) -> None:
    """One line of JSON on stdout, at once."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
