"""Messages as JSON files in one form only: a file that reads the same but is written otherwise is refused."""

import json
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

MAX_BYTES = 1 << 20


class MalformedError(Exception):
    """The bytes are not such a file; the text says in which way."""


def encode(message: Message) -> bytes:
    """The one form: sorted keys, two spaces, bytes in base64, a line feed at the end."""
    plain = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode()


def decode(data: bytes, kind: type[M]) -> M:
    """The message in a file.

    Raises:
        MalformedError: it is no such message, or not written in the one form.
    """
    if len(data) > MAX_BYTES:
        raise MalformedError(f"it has more than {MAX_BYTES} bytes")
    made = kind()
    try:
        json_format.ParseDict(json.loads(data), made)
    except (ValueError, RecursionError, json_format.ParseError):
        raise MalformedError("it is not the JSON of one") from None
    if encode(made) != data:
        raise MalformedError("it is not written in the one form that it may have: something was changed or added")
    return made
