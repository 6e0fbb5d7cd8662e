"""What every attempt's program begins and ends with."""

from __future__ import annotations

from crucible_executor.verify.model import BEGAN, RAN

# AIM says where to try one's luck: only listeners, files and processes that the suite made. `tried` swallows a refusal
# and nothing else: any other error ends the program with another exit code, and then it did not run.
_HEAD = f"""
import ctypes, errno, fcntl, glob, json, os, signal, socket, struct, sys, time
AIM = json.load(open("aim.json"))
TOKEN = AIM["token"]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def tried(action, *args, **more):
    try:
        return action(*args, **more)
    except OSError:
        return None
def call(function, *args):
    args = [a.encode() if isinstance(a, str) else a for a in args]
    return getattr(libc, function)(*args)
def system(number, *args):
    return libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
def read(path):
    with open(path, "rb") as file:
        return file.read(65536)
def say(what):
    if what is not None:
        os.write(1, what if isinstance(what, bytes) else str(what).encode())
def append(path):
    with open(path, "ab") as file:
        file.write(b"owned " + TOKEN.encode())
def hold():
    time.sleep(AIM["hold"])
def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
os.write(2, {BEGAN!r} + TOKEN.encode())
"""

_TAIL = f"\nos._exit({RAN})\n"


def program(body: str) -> bytes:
    """The whole program of an attempt."""
    return (_HEAD + body + _TAIL).encode()
