"""Where the sandbox's kernel refused a process or thread because the program had as many as it may have.

The host cannot see that: RLIMIT_NPROC of a program in a user-space kernel is that kernel's own business. The trace has
the error of every call that makes a process (gVisor, `PointClone` and `pointForkHelper` of `syscalls/linux/points.go`).
"""

from __future__ import annotations

import errno

from crucible_executor.tracing import wire

CALLS = ("clone", "fork", "vfork")
"""Traced where they return. clone3 does not exist for a program: `forbid_user_namespaces` of `executor/init/init.c`."""

KINDS = frozenset({int(wire.Kind.CLONE_CALL), int(wire.Kind.FORK_CALL)})
_EXIT, _ERROR = 2, 2


def is_refused_process(message: wire.Message) -> bool:
    """Whether a message of one of `KINDS` says so.

    Raises:
        wire.MalformedError: the message is not what its header says.
    """
    ended = dict(wire.fields(message.payload)).get(_EXIT, 0)
    if isinstance(ended, int):
        raise wire.MalformedError("a number where a message belongs")
    return dict(wire.fields(ended)).get(_ERROR, 0) == errno.EAGAIN
