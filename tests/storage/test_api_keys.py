import hashlib

import pytest
from sqlalchemy import text

from crucible_rpc.errors import AlreadyExistsError, NotFoundError, UnauthenticatedError
from crucible_storage import audit
from crucible_storage.state import FILE
from tests.storage.world import storage


def digest(key):
    return hashlib.sha256(key).digest()


async def test_a_key_is_known_by_its_digest_until_it_is_revoked(world):
    keys = world.service.api_keys
    made = await keys.create("t", "for people", digest(b"one"), admin=False)
    assert (await keys.authenticate(digest(b"one"))) == made
    assert (made.tenant, made.admin, made.description, made.revoke_time) == ("t", False, "for people", None)
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(digest(b"two"))
    world.clock.wall += 5
    revoked = await keys.revoke(made.id)
    assert revoked.revoke_time == world.clock.now()
    with pytest.raises(UnauthenticatedError) as caught:
        await keys.authenticate(digest(b"one"))
    assert caught.value.reason == "INVALID_API_KEY"
    world.clock.wall += 5
    assert (await keys.revoke(made.id)).revoke_time == revoked.revoke_time


async def test_keys_are_listed_oldest_first(world):
    made = []
    for number in range(5):
        made.append((await world.service.api_keys.create("t", "", digest(b"%d" % number), admin=True)).id)
        world.clock.wall += 1
    assert [row.id for row in await world.service.api_keys.list()] == made


async def test_an_unknown_key_cannot_be_revoked_and_no_key_is_stored_twice(world):
    with pytest.raises(NotFoundError) as caught:
        await world.service.api_keys.revoke("key-0")
    assert caught.value.reason == "API_KEY_NOT_FOUND"
    await world.service.api_keys.create("t", "", digest(b"x"), admin=False)
    with pytest.raises(AlreadyExistsError):
        await world.service.api_keys.create("u", "", digest(b"x"), admin=True)
    assert (await world.service.api_keys.authenticate(digest(b"x"))).tenant == "t"


async def test_a_creation_that_comes_again_is_answered_as_it_was_and_recorded_once(world):
    keys = world.service.api_keys
    made = await keys.create("t", "for people", digest(b"one"), admin=False, by="key-1")
    world.clock.wall += 5
    assert await keys.create("t", "for people", digest(b"one"), admin=False, by="key-1") == made
    assert await keys.list() == [made]
    recorded = text("SELECT count(*) FROM audit_pending WHERE action = :action")
    count = await world.service.database.read(
        lambda connection: connection.execute(recorded, {"action": audit.KEY_CREATE}).scalar_one()
    )
    assert count == 1


@pytest.mark.parametrize(
    "other", [("u", "for people", False), ("t", "for others", False), ("t", "for people", True)], ids=str
)
async def test_a_key_that_is_stored_as_something_else_is_refused(world, other):
    keys = world.service.api_keys
    made = await keys.create("t", "for people", digest(b"one"), admin=False)
    tenant, description, admin = other
    with pytest.raises(AlreadyExistsError):
        await keys.create(tenant, description, digest(b"one"), admin=admin)
    assert await keys.list() == [made]


async def test_a_creation_that_comes_again_brings_no_revoked_key_back(world):
    keys = world.service.api_keys
    made = await keys.create("t", "for people", digest(b"one"), admin=False)
    await keys.revoke(made.id)
    with pytest.raises(AlreadyExistsError):
        await keys.create("t", "for people", digest(b"one"), admin=False)
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(digest(b"one"))


async def test_the_operators_key_is_stored_once_and_stays_revoked(tmp_path):
    async with storage(tmp_path) as world:
        keys = world.service.api_keys
        assert await keys.bootstrap(digest(b"first"))
        assert not await keys.bootstrap(digest(b"first"))
        row = await keys.authenticate(digest(b"first"))
        assert (row.tenant, row.admin) == ("default", True)
        await keys.revoke(row.id)
    async with storage(tmp_path) as world:
        keys = world.service.api_keys
        assert not await keys.bootstrap(digest(b"first"))
        with pytest.raises(UnauthenticatedError):
            await keys.authenticate(digest(b"first"))
        assert await keys.bootstrap(digest(b"a new one after the first was lost"))


@pytest.mark.database("sqlite")
async def test_the_key_itself_is_nowhere_in_the_state(tmp_path):
    key = b"a key of 256 random bits"
    async with storage(tmp_path) as world:
        await world.service.api_keys.create("t", "", digest(key), admin=False)
    stored = (tmp_path / FILE).read_bytes()
    assert digest(key) in stored
    assert key not in stored
