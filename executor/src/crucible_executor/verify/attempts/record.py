"""The record: what is kept must be what was written and how it ended, whatever the program writes.

The judge computes from these very programs what must be kept: `SAYS` and `COMPLAINS` are their whole output.
"""

from __future__ import annotations

import struct

from crucible_executor.verify.model import FORGED, Attempt, Control, Family

_REPORT = struct.pack("<4sIIIQQQQ16x", b"RPRT", 3, 0, FORGED, 1, 1, 1, 0)
_FRAMES = _REPORT + b"\n[output truncated]\n" + _REPORT + b'{"termination":"EXITED 0"}\nEND!CRUINIT1' + _REPORT
_ESCAPES = b"\x1b[2J\x1b[H\x1b]0;owned\x07\x1b[8mhidden\x1b[0m\r\x1b[1A\x1b[2KOK 100% passed\x9b31m\b\b\b"
_NULS = b"\0before\0after\0\xff\xfe\xc3\x28\xed\xa0\x80\xf4\x90\x80\x80\0"

EXPECTED: dict[str, tuple[bytes, bytes]] = {
    "forged-marks": (_FRAMES, b"err"),
    "terminal-escapes": (_ESCAPES, _ESCAPES),
    "nuls-and-broken-text": (_NULS, _NULS),
    "streams-apart": (b"out" * 1000, b"err" * 1000),
    "output-after-the-end": (b"in time", b""),
    "exit-of-another": (b"", b""),
}
"""By attempt: exactly what stdout and stderr must hold, without the mark of its beginning."""


def _write(name: str) -> str:
    out, err = EXPECTED[name]
    return f"os.write(1, {out!r})\nos.write(2, {err!r})\n"


_LATE = """
os.write(1, b"in time")
if os.fork() == 0:
    os.setsid()
    time.sleep(0.25)
    for _ in range(20):
        tried(os.write, 1, b" too late")
        time.sleep(0.02)
    os._exit(0)
"""

_OTHERS_EXIT = f"""
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.1)
        os._exit({FORGED})
    os._exit({FORGED})
os.wait()
time.sleep(0.4)
"""

_RECORD = ("record",)

ATTEMPTS = (
    Attempt(
        "forged-marks", Family.RECORD, "output that looks like reports and marks is taken for them",
        _write("forged-marks"), ("record", "end"), Control(lossy=True),
    ),
    Attempt(
        "terminal-escapes", Family.RECORD, "escape sequences change what is kept",
        _write("terminal-escapes"), _RECORD, Control(lossy=True),
    ),
    Attempt(
        "nuls-and-broken-text", Family.RECORD, "NULs or broken UTF-8 change what is kept",
        _write("nuls-and-broken-text"), _RECORD, Control(lossy=True),
    ),
    Attempt(
        "streams-apart", Family.RECORD, "what went to one stream is kept in the other",
        _write("streams-apart"), _RECORD, Control(merged=True),
    ),
    Attempt(
        "output-after-the-end", Family.RECORD, "a child adds to the output after the program's end",
        _LATE, _RECORD, Control(reap=False),
    ),
    Attempt(
        "exit-of-another", Family.RECORD, "a child's end is recorded as the program's",
        _OTHERS_EXIT, ("end",), Control(first_end=True),
    ),
)  # fmt: skip
