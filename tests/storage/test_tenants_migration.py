"""What the migration enters of what a database already holds."""

from sqlalchemy import inspect, select, text

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_storage import migrate, models

_FAILURE = pb.Evaluation(termination=pb.Termination(infrastructure_failure=pb.InfrastructureFailure(reason="gone")))
_EXIT = pb.Evaluation(termination=pb.Termination(exited=pb.Exited(code=1)))


def _empty(column):
    if column.nullable:
        return None
    return {"LargeBinary": b"", "Integer": 0, "BigInteger": 0, "Boolean": False}.get(type(column.type).__name__, "")


def _insert(connection, table, **values):
    columns = {column.name: column for column in models.metadata.tables[table].columns}
    present = [column["name"] for column in inspect(connection).get_columns(table)]
    full = {name: values.get(name, _empty(columns[name])) for name in present}
    names = ", ".join(f'"{name}"' for name in full)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(':' + one for one in full)})"), full)


def _evaluation(connection, seq, tenant, state, *, attempt=1):
    facts = {"seq": seq, "id": f"id-{seq}", "tenant": tenant, "state": state, "attempt": attempt, "end_time": 900 + seq}
    _insert(connection, "evaluation", run_spec_size=100, create_time=seq, **facts)


def _output(connection, position, tenant, seq, attempt, size):
    facts = {"position": position, "tenant": tenant, "evaluation_seq": seq, "attempt": attempt, "size": size}
    _insert(connection, "output", stream=1, offset=0, **facts)


def test_tenants_their_bytes_and_dead_letters_are_entered_from_what_is_there(tmp_path, databases):
    databases.url(tmp_path / "state", empty=True)
    backend = databases.backend(tmp_path / "state")
    with backend.writer.connect() as connection, connection.begin():
        migrate.command.upgrade(migrate.config(connection), "0004")
        _insert(connection, "api_key", id="k", tenant="only-a-key", create_time=7)
        _evaluation(connection, 1, "a", 4)
        _evaluation(connection, 2, "a", 5)
        _evaluation(connection, 3, "a", 3, attempt=2)
        _evaluation(connection, 4, "b", 5)
        for seq, result in ((2, _FAILURE), (4, _EXIT)):
            _insert(connection, "result", evaluation_seq=seq, tenant="a", result=result.SerializeToString())
        _output(connection, 1, "a", 1, 1, 10)
        _output(connection, 2, "a", 3, 1, 20)
        _output(connection, 3, "a", 3, 2, 40)  # of the attempt under way: counted when that ends
        migrate.upgrade(connection)
        tenants = connection.execute(select(models.tenant).order_by(text("tenant"))).mappings().all()
        assert [(row["tenant"], row["weight"], row["create_time"]) for row in tenants] == [
            ("a", 1, 1),
            ("b", 1, 4),
            ("only-a-key", 1, 7),
        ]
        assert {row["max_priority"] for row in tenants} == {100}
        assert not {row["max_queued"] or row["max_running"] or row["max_stored_bytes"] for row in tenants} - {0}
        uses = connection.execute(select(models.tenant_use).order_by(text("tenant"))).all()
        assert [tuple(row) for row in uses] == [("a", 0, 3, 0, 330), ("b", 0, 1, 0, 100)]
        letters = connection.execute(select(models.dead_letter)).mappings().all()
        assert [(row["evaluation_seq"], row["tenant"], row["reason"], row["time"]) for row in letters] == [
            (2, "a", "gone", 902)
        ]
        assert letters[0]["retried_as"] is None
    backend.dispose()
