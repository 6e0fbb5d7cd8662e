import asyncio
from datetime import timedelta

import pytest

from crucible_gateway import auth
from crucible_gateway.caller import Caller
from crucible_rpc.errors import UnauthenticatedError, UnavailableError


class Keys:
    def __init__(self, **callers):
        self.callers = {auth.digest(key): caller for key, caller in callers.items()}
        self.asked = 0
        self.down = False
        self.gate = None

    async def authenticate(self, key_sha256):
        self.asked += 1
        if self.down:
            raise UnavailableError("PEER_UNAVAILABLE", "storage is away")
        caller = self.callers.get(key_sha256)
        if self.gate is not None:
            await self.gate.wait()
        if caller is None:
            raise UnauthenticatedError("INVALID_API_KEY", "unknown")
        return caller


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


ALICE = Caller("k1", "acme", admin=False)


@pytest.fixture
def keys():
    return Keys(alice=ALICE)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def authenticator(keys, clock):
    return auth.Authenticator(keys, capacity=3, clock=clock)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic alice",
        "alice",
        "Bearer é",
        "Bearer " + "x" * 257,
        b"Bearer alice",
        "Bearer nobody",
    ],
)
async def test_header_without_a_good_key_is_refused(authenticator, header):
    with pytest.raises(UnauthenticatedError) as caught:
        await authenticator.authenticate(header)
    assert caught.value.reason == "INVALID_API_KEY"


@pytest.mark.parametrize("header", ["Bearer alice", "bearer alice", "BEARER alice "])
async def test_good_key_names_its_caller(authenticator, header):
    assert await authenticator.authenticate(header) == ALICE


async def test_good_key_is_remembered_for_five_seconds(authenticator, keys, clock):
    for clock.now in (0, 1, 4.9):
        await authenticator.authenticate("Bearer alice")
    assert keys.asked == 1
    clock.now = 5.1
    await authenticator.authenticate("Bearer alice")
    assert keys.asked == 2


async def test_key_revoked_elsewhere_works_at_most_five_seconds_longer(authenticator, keys, clock):
    await authenticator.authenticate("Bearer alice")
    keys.callers.clear()
    clock.now = 5.1
    with pytest.raises(UnauthenticatedError):
        await authenticator.authenticate("Bearer alice")
    keys.down = True
    with pytest.raises(UnavailableError):  # what was refused is not remembered as good
        await authenticator.authenticate("Bearer alice", allow_stale=True)


async def test_key_revoked_here_is_refused_at_once(authenticator, keys):
    await authenticator.authenticate("Bearer alice")
    keys.callers.clear()
    authenticator.forget("k1")
    with pytest.raises(UnauthenticatedError):
        await authenticator.authenticate("Bearer alice")


async def test_answer_that_was_on_its_way_during_a_revocation_is_not_kept(authenticator, keys):
    keys.gate = asyncio.Event()
    asking = asyncio.ensure_future(authenticator.authenticate("Bearer alice"))
    await asyncio.sleep(0)
    authenticator.forget("k1")
    keys.gate.set()
    await asking
    keys.callers.clear()
    with pytest.raises(UnauthenticatedError):
        await authenticator.authenticate("Bearer alice")


async def test_wrong_keys_take_no_memory(authenticator):
    for number in range(50):
        with pytest.raises(UnauthenticatedError):
            await authenticator.authenticate(f"Bearer wrong{number}")
    assert not authenticator._known


async def test_cache_is_bounded_and_drops_the_least_recently_used(clock):
    keys = Keys(**{f"u{number}": Caller(f"k{number}", "t", admin=False) for number in range(4)})
    authenticator = auth.Authenticator(keys, capacity=3, clock=clock)
    for key in ("u0", "u1", "u2", "u0", "u3"):
        await authenticator.authenticate(f"Bearer {key}")
    assert keys.asked == 4
    await authenticator.authenticate("Bearer u0")
    assert keys.asked == 4
    await authenticator.authenticate("Bearer u1")
    assert keys.asked == 5


async def test_old_answer_serves_only_where_allowed_and_only_while_storage_is_away(authenticator, keys, clock):
    await authenticator.authenticate("Bearer alice")
    keys.down, clock.now = True, 100
    with pytest.raises(UnavailableError):
        await authenticator.authenticate("Bearer alice")
    assert await authenticator.authenticate("Bearer alice", allow_stale=True) == ALICE
    clock.now = timedelta(hours=1).total_seconds()
    with pytest.raises(UnavailableError):
        await authenticator.authenticate("Bearer alice", allow_stale=True)


def test_new_secret_has_256_bits_after_the_prefix():
    secret = auth.new_secret()
    assert secret.startswith("crucible_")
    assert len(secret) == len("crucible_") + 43
    assert auth.new_secret() != secret
