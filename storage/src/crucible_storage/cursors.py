"""Page tokens: where a list goes on, bound to the list they were given for, so that none from elsewhere is believed."""

import base64
import binascii
import hmac
import secrets

from crucible_rpc.errors import FieldViolation, InvalidArgumentError
from crucible_storage.models import PLATFORM, SettingRow
from crucible_storage.transaction import WriteTransaction

_KEY = "page_token_key"
_MAC_BYTES = 16
_SEQ_BYTES = 8


def load_key(transaction: WriteTransaction) -> bytes:
    """The key of this installation's tokens, made at the first start."""
    row = transaction.session.get(SettingRow, _KEY)
    if row is None:
        row = SettingRow(name=_KEY, tenant=PLATFORM, value=secrets.token_bytes(32))
        transaction.session.add(row)
    return row.value


class Cursors:
    """Makes and reads page tokens under one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def token(self, list_id: str, seq: int) -> str:
        """The token that goes on after `seq` in the list `list_id` (its tenant and filters, in one text)."""
        body = seq.to_bytes(_SEQ_BYTES, "big")
        return base64.urlsafe_b64encode(body + self._mac(list_id, body)).decode().rstrip("=")

    def seq(self, list_id: str, token: str) -> int:
        """Where a token goes on.

        Raises:
            InvalidArgumentError: INVALID_PAGE_TOKEN, it was not given for this list.
        """
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        body, mac = raw[:_SEQ_BYTES], raw[_SEQ_BYTES:]
        if not hmac.compare_digest(mac, self._mac(list_id, body)):
            text = "must be the next_page_token of the same list with the same filters"
            violation = FieldViolation("page_token", text)
            raise InvalidArgumentError("INVALID_PAGE_TOKEN", f"page_token {text}", [violation])
        return int.from_bytes(body, "big")

    def _mac(self, list_id: str, body: bytes) -> bytes:
        return hmac.digest(self._key, body + list_id.encode(), "sha256")[:_MAC_BYTES]
