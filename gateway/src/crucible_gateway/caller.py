"""Who is calling: what the API key of the call being served says."""

from contextvars import ContextVar
from dataclasses import dataclass

_current: ContextVar["Caller | None"] = ContextVar("caller", default=None)


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of an API key.

    Attributes:
        key_id: names the key in records; not secret.
        tenant: whose evaluations it sees and makes.
        admin: whether it may call what is for administrators.
    """

    key_id: str
    tenant: str
    admin: bool


def begin(caller: Caller) -> None:
    """Makes `caller` the current one for the rest of this task."""
    _current.set(caller)


def current() -> Caller:
    """The caller of the RPC being served.

    Raises:
        RuntimeError: the RPC was not authenticated: a fault of the gateway's own.
    """
    caller = _current.get()
    if caller is None:
        raise RuntimeError("no caller: this RPC was not authenticated")
    return caller
