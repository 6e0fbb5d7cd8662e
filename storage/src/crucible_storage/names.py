"""Names of evaluations and runs, parsed where they enter."""

import re
import uuid
from typing import NamedTuple

from crucible_rpc.errors import FieldViolation, InvalidArgumentError

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_EVALUATION = re.compile(rf"evaluations/({_UUID})")
_BATCH = re.compile(rf"batches/({_UUID})")
_RUN = re.compile(rf"({_UUID})\.([1-9][0-9]{{0,8}})")


class RunName(NamedTuple):
    """The two parts of a run id."""

    evaluation_id: str
    attempt: int


def new_id() -> str:
    """A new random id of an evaluation."""
    return str(uuid.uuid4())


def evaluation_name(evaluation_id: str) -> str:
    """The resource name of an evaluation."""
    return f"evaluations/{evaluation_id}"


def run_id(evaluation_id: str, attempt: int) -> str:
    """The id of one attempt of one evaluation."""
    return f"{evaluation_id}.{attempt}"


def parse_evaluation_name(text: str, field: str = "name") -> str:
    """The id inside `evaluations/{uuid}`.

    Raises:
        InvalidArgumentError: INVALID_FIELD, the text is not such a name.
    """
    match = _EVALUATION.fullmatch(text)
    if match is None:
        raise invalid(field, "must be `evaluations/` and a UUID in lower case")
    return match[1]


def batch_name(batch_id: str) -> str:
    """The resource name of a batch."""
    return f"batches/{batch_id}"


def parse_batch_name(text: str, field: str = "name") -> str:
    """The id inside `batches/{uuid}`.

    Raises:
        InvalidArgumentError: INVALID_FIELD, the text is not such a name.
    """
    match = _BATCH.fullmatch(text)
    if match is None:
        raise invalid(field, "must be `batches/` and a UUID in lower case")
    return match[1]


def parse_run_id(text: str) -> RunName | None:
    """The parts of a run id; None when it is not one."""
    match = _RUN.fullmatch(text)
    return None if match is None else RunName(match[1], int(match[2]))


def invalid(field: str, description: str) -> InvalidArgumentError:
    """The error that one field is wrong."""
    return InvalidArgumentError("INVALID_FIELD", f"{field} {description}", [FieldViolation(field, description)])
