"""What the messages of `BatchService` must look like, as `validation` for those of `EvaluationService`."""

import re

from crucible.evaluation.v1 import batch_pb2 as ev
from crucible.gateway.v1 import batch_service_pb2 as api
from crucible_gateway import validation
from crucible_gateway.validation import BATCH, Violations, invalid
from crucible_rpc.errors import FieldViolation, InvalidArgumentError

MAX_ITEMS = 100_000
MAX_ITEMS_OF_MESSAGE = 1000
MAX_AFTER = 64

_KEY = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9._:-]{1,128}")
_AFTER = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def header(message: api.CreateBatchRequest | None) -> api.BatchHeader:
    """The header that a stream must begin with.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    if message is None or message.WhichOneof("kind") != "header":
        raise invalid([FieldViolation("header", "must be the first message of the stream")])
    found = Violations()
    validation.check_request_id("header.request_id", message.header.request_id, found)
    validation.check_labels("header.labels", message.header.labels, found)
    found.check()
    return message.header


def items(message: api.CreateBatchRequest, following: int) -> int:
    """Checks a message with items, but not the items; answers the number of the first.

    Args:
        message: any but the first and the last of a stream.
        following: the number that comes after the items of the message before.

    Raises:
        InvalidArgumentError: with the field at fault.
    """
    if message.WhichOneof("kind") != "items":
        raise invalid([FieldViolation("items", "must be what every message but the first and the last brings")])
    part = message.items
    if not 0 <= part.first_index <= MAX_ITEMS:
        raise invalid([FieldViolation("items.first_index", f"must be from 0 to {MAX_ITEMS}")])
    if len(part.items) > MAX_ITEMS_OF_MESSAGE:
        text = f"must be at most {MAX_ITEMS_OF_MESSAGE} in one message, not {len(part.items)}"
        raise invalid([FieldViolation("items", text)])
    return part.first_index or following


def end(message: api.BatchEnd) -> int:
    """Checks the last message; answers how many items the batch must have, 0 for any number."""
    if not 0 <= message.items <= MAX_ITEMS:
        raise invalid([FieldViolation("end.items", f"must be from 0 to {MAX_ITEMS}")])
    return message.items


def check_name(name: str) -> None:
    """Checks the name of a batch.

    Raises:
        InvalidArgumentError: it is not `batches/{uuid}`.
    """
    if not BATCH.fullmatch(name):
        raise invalid([FieldViolation("name", "must be batches/{uuid}, the uuid in lower case")])


def check_list(request: api.ListBatchesRequest) -> None:
    """Checks a list request.

    Raises:
        InvalidArgumentError: with the field at fault, or INVALID_PAGE_TOKEN.
    """
    found = Violations()
    validation.check_page(request.page_size, found)
    found.check()
    validation.check_page_token(request.page_token)


def check_cancel(request: api.CancelBatchRequest) -> None:
    """Checks a cancel request.

    Raises:
        InvalidArgumentError: with the field at fault.
    """
    check_name(request.name)
    validation.check_reason(request.reason)


def check_watch(request: api.WatchBatchRequest) -> None:
    """Checks a watch request.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    check_name(request.name)
    found = Violations()
    if request.order not in ev.BatchOrder.values():
        found.add("order", "must be END or ITEM, or left out for END")
    if not 0 <= request.after_cursor < 1 << 62:
        found.add("after_cursor", "must be 0 or the cursor of a result")
    found.check()


def of_item(error: InvalidArgumentError, number: int, key: str) -> InvalidArgumentError:
    """The error about a spec as one about the item that has it."""
    violations = [FieldViolation(f"items[{number}].{one.field}", one.description) for one in error.violations]
    made = invalid(violations)
    made.metadata["key"] = key or str(number)
    return made


def check_item(item: ev.BatchItem, number: int) -> None:
    """Checks one item.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    found = Violations()
    if item.key and not _KEY.fullmatch(item.key):
        found.add("key", "must be at most 128 characters of [A-Za-z0-9._:-], not digits alone")
    if len(item.after) > MAX_AFTER:
        found.add("after", f"must be at most {MAX_AFTER} keys, not {len(item.after)}")
    else:
        for place, key in enumerate(item.after):
            if not _AFTER.fullmatch(key):
                found.add(f"after[{place}]", "must be the key of an earlier item of the batch")
    if item.on_failure not in ev.OnDependencyFailure.values():
        found.add("on_failure", "must be SKIP or RUN_ANYWAY, or left out for SKIP")
    validation.check_spec(item.spec, found)
    try:
        found.check()
    except InvalidArgumentError as error:
        raise of_item(error, number, item.key if len(item.key) <= 128 else "") from error
