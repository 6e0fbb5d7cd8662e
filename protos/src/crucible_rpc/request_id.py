"""The id that follows one request through all processes, in `x-request-id`."""

import re
import secrets
from contextvars import ContextVar

HEADER = "x-request-id"

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")
_current: ContextVar[str] = ContextVar("request_id", default="")


def current() -> str:
    """The request id of the call being served or begun, empty outside of one."""
    return _current.get()


def begin(request_id: str) -> None:
    """Makes `request_id` the current one for the rest of this task and the tasks it starts."""
    _current.set(request_id)


def new() -> str:
    """A fresh random id of 16 hexadecimal digits."""
    return secrets.token_hex(8)


def accepted(offered: object) -> str:
    """`offered` when it is 1 to 64 of `A-Za-z0-9._-`, else a new id: a caller's text goes into logs and headers."""
    return offered if isinstance(offered, str) and _WELL_FORMED.fullmatch(offered) else new()
