"""What a check found."""

from dataclasses import dataclass, field

MAX_SHOWN = 20


@dataclass(slots=True)
class Findings:
    """Faults, counted all and kept the first of.

    Attributes:
        limit: how many are kept as text.
        total: how many there were.
        shown: the first ones, one line each.
    """

    limit: int = MAX_SHOWN
    total: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Notes one fault."""
        self.total += 1
        if len(self.shown) < self.limit:
            self.shown.append(text)


@dataclass(slots=True)
class Progress:
    """How far a check has come.

    Attributes:
        evaluations: looked at so far, deleted ones too.
        of: how many there are.
        deleted: of `evaluations`.
        events: of the log, looked at so far.
        output_bytes: whose chunks were read and digested.
        records: signed final records whose signatures were verified.
        artifacts: objects of the artifact store that were looked for.
        artifact_bytes: how many bytes these have.
    """

    evaluations: int = 0
    of: int = 0
    deleted: int = 0
    events: int = 0
    output_bytes: int = 0
    records: int = 0
    artifacts: int = 0
    artifact_bytes: int = 0
