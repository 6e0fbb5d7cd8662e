"""API keys: from an `authorization` header to a `Caller`, with a small cache so that not every call asks storage."""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, Protocol

from crucible_gateway.caller import Caller
from crucible_rpc.errors import UnauthenticatedError, UnavailableError

KEY_PREFIX = "crucible_"
KEY_BYTES = 32
MAX_KEY_CHARACTERS = 256
SCHEME = "bearer "


class KeyStore(Protocol):
    """Where keys are looked up."""

    async def authenticate(self, key_sha256: bytes) -> Caller:
        """The holder of the key with this digest.

        Raises:
            UnauthenticatedError: the key is unknown or revoked.
            UnavailableError: the store cannot be asked now.
        """
        ...


class _Known(NamedTuple):
    caller: Caller
    fresh_until: float
    usable_until: float


def new_secret() -> str:
    """A new key: 256 random bits in base64url after `crucible_`."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(key: str) -> bytes:
    """What is kept of a key: the SHA-256 of its text. A key has 256 random bits: no salt or stretching is needed."""
    return hashlib.sha256(key.encode()).digest()


def bearer_key(authorization: str | bytes | None) -> str:
    """The key in an `authorization` header.

    Raises:
        UnauthenticatedError: there is none, or it cannot be a key.
    """
    if not authorization:
        raise UnauthenticatedError("INVALID_API_KEY", "no API key; send one as metadata `authorization: Bearer KEY`")
    if isinstance(authorization, bytes) or len(authorization) > len(SCHEME) + MAX_KEY_CHARACTERS:
        raise UnauthenticatedError("INVALID_API_KEY", f"the API key is longer than {MAX_KEY_CHARACTERS} characters")
    scheme, key = authorization[: len(SCHEME)], authorization[len(SCHEME) :].strip()
    if scheme.lower() != SCHEME or not key or not key.isascii():
        raise UnauthenticatedError("INVALID_API_KEY", "`authorization` must be `Bearer KEY`")
    return key


class Authenticator:
    """Knows callers by their keys.

    Only good keys are remembered, for `ttl`: a key revoked through another gateway works at most that much longer. A
    wrong key is asked for each time: nothing an outsider sends takes memory here.

    Args:
        store: where keys are looked up.
        ttl: how long an answer is taken as true.
        stale: how long after that it may still be used where a call allows it, while storage cannot be asked.
        capacity: most keys remembered; the least recently used goes first.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        ttl: timedelta = timedelta(seconds=5),
        stale: timedelta = timedelta(minutes=10),
        capacity: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ttl = ttl.total_seconds()
        self._stale = stale.total_seconds()
        self._capacity = capacity
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._revocations = 0

    async def authenticate(self, authorization: str | bytes | None, *, allow_stale: bool = False) -> Caller:
        """The caller that an `authorization` header names.

        Args:
            authorization: the header as it came.
            allow_stale: whether an answer that is a little too old will do while storage cannot be asked.

        Raises:
            UnauthenticatedError: INVALID_API_KEY: no key, a malformed, unknown or revoked one.
            UnavailableError: storage cannot be asked now.
        """
        key = digest(bearer_key(authorization))
        known = self._known.get(key)
        now = self._clock()
        if known is not None and now < known.fresh_until:
            self._known.move_to_end(key)
            return known.caller
        try:
            return await self._ask(key)
        except UnavailableError:
            if allow_stale and known is not None and now < known.usable_until:
                return known.caller
            raise

    def forget(self, key_id: str) -> None:
        """Drops what is known of a key: it was revoked."""
        self._revocations += 1
        for digest_ in [found for found, known in self._known.items() if known.caller.key_id == key_id]:
            del self._known[digest_]

    async def _ask(self, key: bytes) -> Caller:
        before = self._revocations
        try:
            caller = await self._store.authenticate(key)
        except UnauthenticatedError:
            self._known.pop(key, None)
            raise
        # An answer that was on its way while a key was revoked may be that key's: not kept.
        if before == self._revocations:
            now = self._clock()
            self._known[key] = _Known(caller, now + self._ttl, now + self._ttl + self._stale)
            self._known.move_to_end(key)
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return caller
