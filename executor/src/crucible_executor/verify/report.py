"""What came of it, for people and for programs: a table, JSON, and a scorecard in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from crucible_executor.verify.model import ControlFinding, ControlVerdict, Family, Finding, Verdict


@dataclass(frozen=True)
class Report:
    """One run of the suite over one engine. `controls` is empty when they were not asked for."""

    engine: str
    version: str
    isolation: str
    findings: Sequence[Finding]
    controls: Sequence[ControlFinding]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing is short of its promise and no judge is blind."""
        blind = any(one.verdict is ControlVerdict.BLIND for one in self.controls)
        return not blind and not any(one.short_of_promise for one in self.findings)

    def summary(self) -> str:
        """The counts, in one or two lines."""
        count = {verdict: sum(1 for one in self.findings if one.verdict is verdict) for verdict in Verdict}
        short = sum(1 for one in self.findings if one.short_of_promise)
        text = (
            f"{self.engine} {self.version}: {len(self.findings)} attempts, "
            f"{', '.join(f'{number} {verdict.value}' for verdict, number in count.items())}; "
            f"{short} short of what the engine promises; {self.seconds:.0f} s"
        )
        if self.controls:
            proved = {verdict: sum(1 for one in self.controls if one.verdict is verdict) for verdict in ControlVerdict}
            text += "\ncontrols: " + ", ".join(f"{number} {verdict.value}" for verdict, number in proved.items())
        return text


def table(report: Report) -> str:
    """A table for a terminal, by family."""
    lines = []
    for family in Family:
        lines.append(f"{family.value}")
        for one in (f for f in report.findings if f.attempt.family is family):
            mark = "!" if one.short_of_promise else " "
            seen = one.attempt.breach if one.verdict is Verdict.CONTAINED else one.evidence
            lead = "not: " if one.verdict is Verdict.CONTAINED else ""
            lines.append(f"{mark} {one.verdict.value:10} {one.attempt.name:26} {lead}{seen}")
    if report.controls:
        lines.append("controls: without the sandbox, with the weakness planted")
        for control in report.controls:
            mark = "!" if control.verdict is ControlVerdict.BLIND else " "
            lines.append(f"{mark} {control.verdict.value:15} {control.attempt.name:26} {control.evidence}")
    return "\n".join([*lines, report.summary()])


def as_json(report: Report) -> str:
    """The same as one JSON object."""
    controls = {one.attempt.name: one for one in report.controls}
    return json.dumps(
        {
            "engine": report.engine,
            "version": report.version,
            "isolation": report.isolation,
            "good": report.good,
            "seconds": round(report.seconds, 1),
            "attempts": [_record(one, controls.get(one.attempt.name)) for one in report.findings],
        },
        indent=2,
    )


def _record(one: Finding, control: ControlFinding | None) -> dict[str, object]:
    record: dict[str, object] = {
        "name": one.attempt.name,
        "family": one.attempt.family.name,
        "breach": one.attempt.breach,
        "verdict": one.verdict.value,
        "promised": one.promised,
        "why_not_promised": one.why_not,
        "evidence": one.evidence,
        "seconds": round(one.seconds, 2),
    }
    if control is not None:
        record["control"] = {"verdict": control.verdict.value, "evidence": control.evidence}
    return record


def markdown(report: Report, command: str) -> str:
    """The engine's scorecard.

    Args:
        report: what came of it.
        command: what made it, for the reader who wants to make it again.
    """
    controls = {one.attempt.name: one.verdict.value for one in report.controls}
    lines = [
        f"# Containment scorecard: `{report.engine}`",
        "",
        f"Made by `{command}`; do not edit. Engine version {report.version}, isolation {report.isolation}.",
        "",
        "Each verdict is judged from outside the sandbox, by what the host shows, never by what the program says.",
        "CONTAINED: it ran to its end and no judge saw a breach. VULNERABLE: a judge saw one. NOT_RUN: it did not get",
        "to its end, so nothing is known. Control: the same program without the sandbox and with the weakness planted,",
        "where the judge must say VULNERABLE; CONTROL_NOT_RUN where there is no safe way to do that.",
        "",
        "| family | attempts | CONTAINED | VULNERABLE | NOT_RUN |",
        "|---|---|---|---|---|",
    ]
    for family in Family:
        ours = [one for one in report.findings if one.attempt.family is family]
        counts = " | ".join(str(sum(1 for one in ours if one.verdict is verdict)) for verdict in Verdict)
        lines.append(f"| {family.value} | {len(ours)} | {counts} |")
    lines += ["", "| attempt | a breach would be | promised | verdict | control |", "|---|---|---|---|---|"]
    for one in report.findings:
        promised = "yes" if one.promised else f"no: {one.why_not}"
        said = "" if one.verdict is Verdict.CONTAINED else f": {_cell(one.evidence)}"
        verdict = one.verdict.value + said
        control = controls.get(one.attempt.name, "not asked for")
        lines.append(f"| `{one.attempt.name}` | {one.attempt.breach} | {promised} | {verdict} | {control} |")
    unproved = [one for one in report.controls if one.verdict is not ControlVerdict.VULNERABLE]
    if unproved:
        lines += ["", "Controls that prove nothing:", ""]
        lines += [f"- `{one.attempt.name}`: {one.verdict.value}, {_cell(one.evidence)}" for one in unproved]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:160]
