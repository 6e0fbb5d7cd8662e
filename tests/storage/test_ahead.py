"""A group of writes on PostgreSQL goes on before its statements are answered, and costs few trips to the server."""

import asyncio

import pytest
from sqlalchemy import insert, select, text

from crucible_rpc.errors import AlreadyExistsError
from crucible_storage import models
from crucible_storage.databases.wire import Wire
from crucible_storage.group_commit import GroupCommit, Operation
from crucible_storage.prepared import Prepared
from crucible_storage.state import prepare
from tests.storage.world import finished as ended
from tests.storage.world import output, report, started

pytestmark = pytest.mark.database("postgresql")

_SETTING = models.SettingRow.__table__
_PUT = Prepared(insert(_SETTING))
_NAMES = Prepared(select(_SETTING.c.name).order_by(_SETTING.c.name))
_RENAME = Prepared(text("UPDATE setting SET name = :new WHERE name = :old"))


@pytest.fixture
def backend(tmp_path, databases):
    chosen = databases.backend(tmp_path / "state")
    prepare(chosen)
    yield chosen
    chosen.dispose()


@pytest.fixture
def trips(monkeypatch):
    """The statements that were waited for."""
    asked = []
    ask = Wire._ask

    def counted(wire, statement, *rest):
        asked.append(statement)
        return ask(wire, statement, *rest)

    monkeypatch.setattr(Wire, "_ask", counted)
    return asked


def put(name, *, fail=None, runs=None):
    def run(transaction):
        if runs is not None:
            runs.append(name)
        _PUT.many(transaction.connection, [{"name": name, "tenant": "*", "value": name.encode()}])
        if fail is not None:
            raise fail
        return name

    return Operation(run)


def committed(backend, *operations):
    group = GroupCommit(backend, 1, lambda: False)
    try:
        assert group.commit(list(operations)) is not None
    finally:
        group.close()
    return [one.error if one.error is not None else one.result for one in operations]


def stored(backend):
    with backend.reader.connect() as connection:
        return [name for (name,) in _NAMES.all(connection, {}) if len(name) == 1]


def test_an_operation_that_fails_after_it_wrote_has_its_group_run_again_and_fails_alone(backend):
    runs, failure = [], AlreadyExistsError("X", "x")
    found = committed(backend, put("a", runs=runs), put("b", fail=failure, runs=runs), put("c", runs=runs))
    assert found == ["a", failure, "c"]
    assert runs == ["a", "b", "a", "b", "c"]
    assert stored(backend) == ["a", "c"]


def test_an_operation_that_fails_before_it_wrote_costs_the_others_nothing(backend):
    runs, failure = [], AlreadyExistsError("X", "x")

    def refused(transaction):
        runs.append("refused")
        _NAMES.all(transaction.connection, {})
        transaction.count("t", 1, 1)
        raise failure

    assert committed(backend, put("a", runs=runs), Operation(refused), put("c", runs=runs)) == ["a", failure, "c"]
    assert runs == ["a", "refused", "c"]
    with backend.reader.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM evaluation_count")).scalar_one() == 0


def test_a_statement_that_fails_late_is_laid_to_its_own_operation(backend):
    committed(backend, put("b"))
    first, second, third = committed(backend, put("a"), put("b"), put("c"))
    assert (first, type(second).__name__, third) == ("a", "UniqueViolation", "c")
    assert stored(backend) == ["a", "b", "c"]


def test_rows_that_were_not_sent_yet_are_seen_by_who_reads_their_table(backend):
    seen = []

    def look(transaction):
        _RENAME.changes(transaction.connection, {"old": "a", "new": "z"}, rows=1)
        seen.extend(name for (name,) in _NAMES.all(transaction.connection, {}) if len(name) == 1)
        seen.extend(transaction.execute(text("SELECT name FROM setting WHERE name = 'b'")).scalars())

    committed(backend, put("a"), put("b"), Operation(look))
    assert seen == ["b", "z", "b"]


def test_an_update_that_did_not_change_what_it_should_is_told_so_in_the_end(backend):
    answers = []

    def rename(transaction):
        answers.append(_RENAME.changes(transaction.connection, {"old": "x", "new": "z"}, rows=1))

    committed(backend, put("a"), Operation(rename))
    assert answers == [True, False]  # taken for granted; then run again, and known
    assert stored(backend) == ["a"]


def test_values_come_back_as_they_went(backend):
    text_, blob = "ü\N{SNOWMAN}'\"\\,{}", bytes(range(256))
    rows = [{"name": text_, "tenant": "", "value": blob}, {"name": "empty", "tenant": "", "value": b""}]
    read = Prepared(select(_SETTING.c.tenant, _SETTING.c.value).where(_SETTING.c.tenant != "*"))
    found = committed(backend, Operation(lambda one: _PUT.many(one.connection, rows) or read.all(one.connection, {})))
    assert sorted(found[0]) == [("", b""), ("", blob)]


async def test_a_run_costs_few_trips(world, trips):
    await world.register()
    await asyncio.gather(*(world.create() for _ in range(30)))
    given = await world.lease(30)
    assert len(given) == 30
    trips.clear()
    assert await world.report(*(report(one, started()) for one in given)) == []
    ends = [report(one, output(b"1\n"), ended(one, stdout=b"1\n")) for one in given]
    assert await world.report(*ends) == []
    assert len(trips) <= 4, trips  # the log's head twice; what was reported on is read at once
    trips.clear()
    await asyncio.gather(*(world.create() for _ in range(30)))
    await world.lease(30)
    assert len(trips) <= 3 * 30 + 20, trips
