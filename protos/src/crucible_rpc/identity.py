"""Who is calling: the process that a peer's certificate names, and which RPCs that process may call."""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from crucible_rpc.errors import CallError, PermissionDeniedError, UnauthenticatedError

# The full method, as `/package.Service/Method`, to the processes that may call it. What is not listed nobody may call.
Permissions = Mapping[str, frozenset[str]]

UNAUTHENTICATED_REASON = "PEER_UNAUTHENTICATED"
NOT_PERMITTED_REASON = "PEER_NOT_PERMITTED"

HEALTH_PREFIX = "/grpc.health.v1.Health/"

_SPIFFE_ID = re.compile(rb"spiffe://crucible/([a-z][a-z0-9-]{0,62})")
_current: ContextVar["Identity | None"] = ContextVar("identity", default=None)


@dataclass(frozen=True, slots=True)
class Identity:
    """The calling process, as its certificate says.

    Attributes:
        process: its name, as `worker`.
    """

    process: str


def current() -> Identity | None:
    """The caller of the RPC being served, None outside of one and for calls that need no identity."""
    return _current.get()


def begin(identity: Identity) -> None:
    """Makes `identity` the current one for the rest of this task."""
    _current.set(identity)


def peer_process(context: Any) -> str:
    """The process named by the SPIFFE id in the certificate of the call's peer.

    Raises:
        UnauthenticatedError: the peer showed no certificate, or one without exactly one id of this trust domain.
    """
    names = context.auth_context().get("x509_subject_alternative_name", ())
    found = [match for name in names if (match := _SPIFFE_ID.fullmatch(name))]
    if len(found) != 1:
        raise UnauthenticatedError(UNAUTHENTICATED_REASON, "this service needs a client certificate of a process")
    return found[0][1].decode()


def check(permissions: Permissions, method: str, process: str) -> None:
    """Returns when `process` may call `method`.

    Raises:
        PermissionDeniedError: it may not.
    """
    if process not in permissions.get(method, frozenset()):
        raise PermissionDeniedError(NOT_PERMITTED_REASON, f"{process} may not call {method}")


def is_refusal(error: CallError) -> bool:
    """Whether a service refused the calling process as such, whomever that process served."""
    return error.reason in (UNAUTHENTICATED_REASON, NOT_PERMITTED_REASON)
