"""What can go wrong in a call, without a word of gRPC: domain code raises these, `status` turns them into statuses.

`reason` is a constant in UPPER_SNAKE that a client may branch on (`google.rpc.ErrorInfo.reason`); `message` is one
clear sentence that says what to do, and is shown to the caller as it is. Never put another exception's text into it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta


class StartError(Exception):
    """A process cannot start; the text is the one line that its operator reads."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is at fault.

    Attributes:
        field: its path in the request, as `spec.limits.wall_time`.
        description: what is expected of it.
    """

    field: str
    description: str


class CallError(Exception):
    """A call failed in a way its caller can understand; raise one of the subclasses.

    Attributes:
        reason: UPPER_SNAKE, for programs.
        message: one sentence, for people.
        metadata: further facts for programs, by name.
    """

    def __init__(self, reason: str, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class RetryableError(CallError):
    """A call that may succeed later.

    Attributes:
        retry_after: when to try again; None when unknown.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after: timedelta | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata)
        self.retry_after = retry_after


class InvalidArgumentError(CallError):
    """The request is wrong whatever the state of the system.

    Attributes:
        violations: the fields at fault.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        violations: Sequence[FieldViolation] = (),
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata)
        self.violations: tuple[FieldViolation, ...] = tuple(violations)


class NotFoundError(CallError):
    """What the request names does not exist, or not for this caller."""


class AlreadyExistsError(CallError):
    """What the request would make is there already."""


class FailedPreconditionError(CallError):
    """The system is not in the state that the request needs; a retry alone does not help."""


class PermissionDeniedError(CallError):
    """The caller is known and may not do this."""


class UnauthenticatedError(CallError):
    """The caller did not prove who it is."""


class ResourceExhaustedError(RetryableError):
    """A quota, a slot or a size limit is used up."""


class UnavailableError(RetryableError):
    """The service cannot answer now; the same call may succeed later."""


class AbortedError(CallError):
    """Another call got in between, as in a lost compare-and-set; repeat the whole step."""


class DeadlineExceededError(CallError):
    """No answer came within the call's deadline; it may have taken effect."""


class OutOfRangeError(CallError):
    """The request reaches past the end of what there is."""


class DataLossError(CallError):
    """Stored or sent bytes are damaged or missing."""


class UnimplementedError(CallError):
    """The service has no such call."""


class CallCancelledError(CallError):
    """The other side cancelled the call."""


class InternalError(CallError):
    """The other side failed in a way that is its own fault."""
