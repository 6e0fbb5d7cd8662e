"""What is called often costs the same however much is stored: its statements find their rows by an index, in order."""

import re

import pytest
from sqlalchemy import text

from crucible_storage import evaluations, large_outputs, leases, lists, queue, store

_NAMED = {"by id": store._BY_ID, "by number": store._BY_SEQ, "by request": evaluations._BY_REQUEST}
_WORK = {"lanes": queue._LANES, "heads": queue._HEADS, "work": store._WAITING_BY_SEQ, "held": leases._HELD}
_STATEMENTS = _NAMED | _WORK
_STATEMENTS |= {"delayed": queue._RELEASE_DELAYED, "next delayed": queue._NEXT_DELAYED}
_STATEMENTS |= {"list": lists._query(lists.Filter("t")), "batch": lists._query(lists.Filter("t", batch="b"))}
_STATEMENTS |= {"to move": large_outputs._TO_MOVE}
_NUMBERS = ["seq", "before", "limit", "rank", "now", "latest", "impossible", "state", "not_before"]
_NUMBERS += ["size", "in_attempt", "of", "ended", "rows"]


@pytest.mark.parametrize("name", _STATEMENTS)
async def test_hot_statement_reads_no_more_than_it_answers(world, databases, name):
    for number in range(20):
        await world.create("t" if number % 2 else "u")
    plan = await world.service.database.read(lambda connection: _plan(connection, databases.name, _STATEMENTS[name]))
    scans = re.findall(r"Seq Scan on (?:evaluation|program|large)|SCAN (?:evaluation|program|large)(?! USING)", plan)
    sorts = re.findall(r"Sort Key|TEMP B-TREE FOR ORDER", plan)
    assert not scans, plan
    assert not re.search(r"(?<!Hash)Aggregate", plan), plan  # min() and the like
    assert not sorts or name == "held", plan  # an executor holds few


def _plan(connection, database, statement):
    compiled = getattr(statement, "_statement", statement).compile(dialect=connection.dialect)
    parameters = {name: 5 if name.startswith(tuple(_NUMBERS)) else "x" for name in compiled.params}
    parameters |= {name: value for name, value in compiled.params.items() if value is not None}
    raw = connection.connection.dbapi_connection
    arguments = [parameters[name] for name in compiled.positiontup] if compiled.positional else parameters
    if database == "sqlite":
        return "\n".join(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {compiled}", arguments))
    connection.execute(text("SET LOCAL enable_seqscan = off"))  # so few rows are quicker read whole
    connection.execute(text("SET LOCAL enable_bitmapscan = off"))
    return "\n".join(row[0] for row in raw.execute(f"EXPLAIN {compiled}", arguments))
