"""How an evaluation's end becomes an exit code and a line for people."""

import signal
from datetime import timedelta

from crucible_client import results
from crucible_client.cli.sizes import show_size

TIME_LIMIT = 124
INFRASTRUCTURE = 125
SPACE_LIMIT = 137
STOPPED = 130

_BY_LIMIT = {
    results.Limit.WALL_TIME: TIME_LIMIT,
    results.Limit.CPU_TIME: TIME_LIMIT,
    results.Limit.MEMORY: SPACE_LIMIT,
    results.Limit.OUTPUT: SPACE_LIMIT,
}


def exit_code(termination: results.Termination | None) -> int:
    """The program's own exit code, 128 + n for a signal, 124 time, 137 memory or output, 130 stopped, 125 otherwise."""
    match termination:
        case results.Exited(code):
            return code
        case results.Signalled(number):
            return 128 + number
        case results.LimitExceeded(limit):
            return _BY_LIMIT.get(limit, INFRASTRUCTURE)
        case results.Cancelled():
            return STOPPED
    return INFRASTRUCTURE


def describe(termination: results.Termination | None) -> str:
    """One line that says how it ended."""
    match termination:
        case results.Exited(code):
            return f"exited with code {code}"
        case results.Signalled(number):
            return f"ended by signal {number}{_signal_name(number)}"
        case results.LimitExceeded(limit):
            return _with_evidence(f"ended by its limit {limit}", termination)
        case results.Cancelled(reason=reason, confirmed=confirmed):
            why = f" ({reason})" if reason else ""
            return f"cancelled{why}" + ("" if confirmed else "; its executor was lost, so that is not confirmed")
        case results.InfrastructureFailure(reason):
            return f"not run to its end: {reason}"
        case None:
            return "not ended yet"
    return "ended in a way that this client does not know; a newer one may"


def remarks(evaluation: results.Evaluation) -> list[str]:
    """What else the caller of a program should know: cut output, and limits that refused it something."""
    lines = []
    for name, output in (("stdout", evaluation.stdout), ("stderr", evaluation.stderr)):
        if output.truncated:
            lines.append(f"{name} was cut: {show_size(output.bytes_kept)} of {show_size(output.bytes_total)} were kept")
    lines += [_hit(hit) for hit in evaluation.limit_hits]
    return lines


_ACTIONS = {
    "programs": "programs executed",
    "files_written": "files opened to write",
    "probes": "secrets and internals",
    "sockets": "sockets",
    "connections": "connections",
    "processes": "processes created",
    "privilege": "privilege attempts",
}


def tried(behaviour: results.Behaviour) -> list[tuple[str, str]]:
    """What the program tried, as names and values; a kind of action that it did not try is left out."""
    reason = f": {behaviour.reason}" if behaviour.reason else ""
    pairs = [("behaviour", f"{behaviour.observation}{reason}")]
    for name, title in _ACTIONS.items():
        seen: results.ObservedActions | None = getattr(behaviour, name)
        if seen is not None and seen.count:
            more = ", …" if seen.count > len(seen.examples) else ""
            pairs.append((title, f"{seen.count} ({', '.join(seen.examples)}{more})"))
    return pairs


def told(seen: results.BehaviourSeen) -> list[tuple[str, str]]:
    """What an update of a running program says, as names and values, one for each action; what is missing is last."""
    pairs = [(_title(one.kind), f"{_since(one.since_start)} no. {one.count}: {one.example}") for one in seen.actions]
    pairs += [(_title(kind), "no more of these are told until the end: so many were") for kind in seen.exhausted]
    if seen.observation is not results.Observation.OBSERVED:
        pairs.append(("behaviour", str(seen.observation) + (f": {seen.reason}" if seen.reason else "")))
    return pairs


def _title(kind: results.ActionKind) -> str:
    return _ACTIONS.get(kind.value.lower(), "something else")


def _since(start: timedelta | None) -> str:
    return "at ?" if start is None else f"at {start.total_seconds():.3f} s"


def _hit(hit: results.LimitHit) -> str:
    detail = f": {hit.evidence.detail}" if hit.evidence and hit.evidence.detail else ""
    return f"the limit {hit.limit} refused it something{detail}"


def _with_evidence(text: str, termination: results.Termination) -> str:
    evidence = termination.evidence
    return f"{text}: {evidence.detail}" if evidence and evidence.detail else text


def _signal_name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""
