"""What is wrong with an archive."""

import json


class ArchiveError(Exception):
    """The archive cannot be taken; the text is one sentence for people."""


def shown(name: bytes | str) -> str:
    """A name from an archive, fit for a message: short, quoted, without what a terminal would obey."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    return json.dumps(text if len(text) <= 80 else text[:80] + "…")
