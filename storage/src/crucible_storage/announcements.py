"""What a commit tells the other storage processes on the same database: a short text, a hint that saves them a look.

Nobody relies on it: who waits looks for himself every few seconds. What does not fit is left out, and the text says so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from crucible_storage.transaction import Notices, Stop, WriteTransaction

MAX_BYTES = 7900  # PostgreSQL takes less than 8000


@dataclass(frozen=True, slots=True)
class Announcement:
    """What another process did.

    Attributes:
        process: which.
        notices: what it changed.
        queued_change: how many more evaluations wait.
        complete: whether `notices` names everything that ended.
    """

    process: int
    notices: Notices = field(default_factory=Notices)
    queued_change: int = 0
    complete: bool = True


def encoded(transaction: WriteTransaction, process: int) -> str:
    """What a transaction has to tell, after its flush; empty: nothing."""
    notices = transaction.notices
    if not (notices.appended or notices.work or notices.finished or notices.stops or notices.inspections):
        return ""
    facts = {
        "process": process,
        "position": notices.last_position,
        "appended": notices.appended,
        "work": notices.work,
        "inspections": notices.inspections,
        "queued": transaction.queued_change,
    }
    stops = [(stop.executor, stop.run_id, stop.epoch, stop.time) for stop in notices.stops]
    text = _json(facts | {"finished": notices.finished, "stops": stops})
    if len(text) > MAX_BYTES:
        text = _json(facts | {"complete": False})
    return text


def decoded(text: str) -> Announcement | None:
    """What another process told; None when it makes no sense, as from another version."""
    try:
        facts = json.loads(text)
        notices = Notices(
            work=bool(facts["work"]),
            finished=[str(one) for one in facts.get("finished", ())],
            stops=[Stop(str(who), str(run), int(epoch), int(at)) for who, run, epoch, at in facts.get("stops", ())],
            inspections=bool(facts["inspections"]),
            last_position=int(facts["position"]),
            appended=int(facts["appended"]),
        )
        return Announcement(int(facts["process"]), notices, int(facts["queued"]), bool(facts.get("complete", True)))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _json(facts: Mapping[str, object]) -> str:
    return json.dumps(facts, separators=(",", ":"))
