"""Users of the system: made once, removed only by the home that made them. The names are a test's own."""

import json
import pwd
import secrets

import pytest

from crucible_deploy import users
from crucible_deploy.layout import make_home

pytestmark = pytest.mark.root


@pytest.fixture
def names(layout):
    make_home(layout)
    made = [f"t{secrets.token_hex(4)}" for _ in range(2)]
    yield made
    users.remove_made(layout.home)


def exists(process: str) -> bool:
    try:
        pwd.getpwnam(f"crucible-{process}")
    except KeyError:
        return False
    return True


def test_users_are_made_without_shell_and_home_and_removed_again(layout, names):
    accounts = users.ensure(layout.home, names)
    entry = pwd.getpwnam(f"crucible-{names[0]}")
    assert entry.pw_shell.endswith("nologin")
    assert entry.pw_dir == "/nonexistent"
    assert accounts[names[0]].uid == entry.pw_uid != 0
    assert accounts[names[0]].uid != accounts[names[1]].uid
    assert users.ensure(layout.home, names) == accounts
    assert sorted(users.remove_made(layout.home)) == sorted(f"crucible-{name}" for name in names)
    assert not any(exists(name) for name in names)
    assert users.remove_made(layout.home) == []


def test_a_user_that_was_there_before_is_never_removed(layout, names):
    other = layout.home.parent / "other"
    other.mkdir()
    users.ensure(layout.home, names[:1])
    users.ensure(other, names)
    assert users.made_by(other) == [f"crucible-{names[1]}"]
    users.remove_made(other)
    assert exists(names[0])


def test_a_record_never_names_a_user_that_is_not_ours(layout, names):
    users.record_of(layout.home).write_text(json.dumps({"made": ["root", "daemon"]}))
    assert users.made_by(layout.home) == []
    assert users.remove_made(layout.home) == []
