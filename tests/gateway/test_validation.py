import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.gateway.v1 import admin_service_pb2 as admin
from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible_gateway import validation
from crucible_rpc.errors import InvalidArgumentError

NAME = "evaluations/0f8fad5b-d9cb-469f-a165-70867728950e"
MIB = 1 << 20


def a_request(**program):
    request = api.CreateEvaluationRequest()
    request.spec.program.CopyFrom(
        ev.Program(**{"runtime": "python", "files": [ev.File(path="a.py", content=b"x")], **program})
    )
    return request


def fields(check, request):
    try:
        check(request)
    except InvalidArgumentError as error:
        return {violation.field for violation in error.violations} or {"an error without a field"}
    return set()


def wrong(request):
    return fields(validation.check_creation, request)


def files(*paths, content=b"x"):
    return [ev.File(path=path, content=content) for path in paths]


def test_smallest_program_is_good():
    assert wrong(a_request()) == set()


def test_largest_program_is_good():
    request = a_request(
        files=files(*(f"{number:03d}" for number in range(256)), content=b"x" * 11_000),
        entrypoint="000",
        args=["a" * 1000] * 100,
        env={f"E{number}": "v" for number in range(64)},
    )
    request.spec.labels.update({f"k{number}": "v" * 256 for number in range(32)})
    assert wrong(request) == set()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "../a",
        "a/../b",
        "a/..",
        ".",
        "./a",
        "a//b",
        "a/",
        "a\0b",
        "é" * 128,
        "x" * 256,
        "/",
        "//",
    ],
)
def test_path_that_is_not_plainly_inside_the_workspace_is_refused(path):
    assert wrong(a_request(files=files("ok", path), entrypoint="ok")) == {"spec.program.files[1].path"}


@pytest.mark.parametrize("path", ["a", "a/b/c", "..a", "a..", "...", ".hidden", "é" * 127, "a b", "-", "x" * 255])
def test_plain_path_is_good(path):
    assert wrong(a_request(files=files(path))) == set()


@pytest.mark.parametrize(
    ("program", "field"),
    [
        ({"files": []}, "spec.program.files"),
        ({"files": files("a", content=b"")}, "spec.program.files"),
        ({"files": files(*map(str, range(257))), "entrypoint": "0"}, "spec.program.files"),
        ({"files": files("a", "a"), "entrypoint": "a"}, "spec.program.files[1].path"),
        ({"files": files("a/b", "a"), "entrypoint": "a"}, "spec.program.files[1].path"),
        ({"files": files("a", "a/b/c"), "entrypoint": "a"}, "spec.program.files[0].path"),
        ({"files": files("a", content=b"x" * (3 * MIB))}, "spec.program"),
        ({"stdin": b"x" * (3 * MIB)}, "spec.program"),
        ({"entrypoint": "b.py"}, "spec.program.entrypoint"),
        ({"files": files("a", "b")}, "spec.program.entrypoint"),
        ({"runtime": ""}, "spec.program.runtime"),
        ({"runtime": "Python 3"}, "spec.program.runtime"),
        ({"runtime": "p" * 64}, "spec.program.runtime"),
        ({"args": ["x"] * 257}, "spec.program.args"),
        ({"args": ["x", "é" * 16_385]}, "spec.program.args[1]"),
        ({"args": ["a\0b"]}, "spec.program.args[0]"),
        ({"args": ["x" * 32_768] * 17}, "spec.program.args"),
        ({"args": ["x" * 32_768] * 8, "env": {f"E{n}": "v" * 32_768 for n in range(8)}}, "spec.program.args"),
        ({"env": {f"E{number}": "" for number in range(65)}}, "spec.program.env"),
        ({"env": {"1A": "v"}}, "spec.program.env['1A']"),
        ({"env": {"A=B": "v"}}, "spec.program.env['A=B']"),
        ({"env": {"A\n": "v"}}, "spec.program.env['A\\n']"),
        ({"env": {"A": "v\0"}}, "spec.program.env['A']"),
        ({"env": {"A": "v" * 32_769}}, "spec.program.env['A']"),
    ],
)
def test_program_out_of_bounds_is_refused_with_its_field(program, field):
    assert wrong(a_request(**program)) == {field}


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"cpus": -1}, "cpus"),
        ({"cpus": float("nan")}, "cpus"),
        ({"cpus": float("inf")}, "cpus"),
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"memory_bytes": 64 * MIB - 1}, "memory_bytes"),
        ({"processes": -1}, "processes"),
        ({"output_bytes": -1}, "output_bytes"),
        ({"open_files": -1}, "open_files"),
        ({"disk_bytes": -1}, "disk_bytes"),
        ({"disk_inodes": -1}, "disk_inodes"),
        ({"wall_time": {"seconds": -1}}, "wall_time"),
        ({"wall_time": {"seconds": 0}}, "wall_time"),
        ({"wall_time": {"nanos": 999}}, "wall_time"),
        ({"wall_time": {"seconds": 1, "nanos": -5}}, "wall_time"),
        ({"wall_time": {"seconds": 1, "nanos": 2_000_000_000}}, "wall_time"),
        ({"cpu_time": {"seconds": 10**15}}, "cpu_time"),
    ],
)
def test_limit_out_of_range_is_refused_with_its_field(limits, field):
    request = a_request()
    request.spec.limits.CopyFrom(ev.Limits(**limits))
    assert wrong(request) == {f"spec.limits.{field}"}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"priority": 101}, "spec.priority"),
        ({"priority": -101}, "spec.priority"),
        ({"engine": "../x"}, "spec.engine"),
        ({"labels": {"K": "v"}}, "spec.labels['K']"),
        ({"labels": {"k" * 64: "v"}}, f"spec.labels['{'k' * 64}']"),
        ({"labels": {"k": "v" * 257}}, "spec.labels['k']"),
        ({"labels": {f"k{number}": "" for number in range(33)}}, "spec.labels"),
    ],
)
def test_spec_out_of_bounds_is_refused_with_its_field(spec, field):
    request = a_request()
    request.spec.MergeFrom(ev.EvaluationSpec(**spec))
    assert wrong(request) == {field}


@pytest.mark.parametrize("request_id", ["a b", "x" * 129, "é", "a\n", "a/b"])
def test_request_id_out_of_bounds_is_refused(request_id):
    request = a_request()
    request.request_id = request_id
    assert wrong(request) == {"request_id"}


def test_everything_wrong_is_told_at_once():
    request = a_request(runtime="?", files=files("/a", ".."), entrypoint="nope", args=["\0"])
    request.spec.priority = 1000
    request.spec.limits.processes = -1
    assert wrong(request) == {
        "spec.program.runtime",
        "spec.program.files[0].path",
        "spec.program.files[1].path",
        "spec.program.entrypoint",
        "spec.program.args[0]",
        "spec.priority",
        "spec.limits.processes",
    }


def test_secret_value_is_not_repeated_in_the_error():
    with pytest.raises(InvalidArgumentError) as caught:
        validation.check_creation(a_request(env={"TOKEN": "hunter2\0"}))
    assert "hunter2" not in str(caught.value) + str(caught.value.violations)


@pytest.mark.parametrize(
    "name", ["", "x", "evaluations/", NAME.upper(), NAME + "/x", NAME + "\n", "evaluations/../keys"]
)
def test_name_of_another_form_is_refused(name):
    for check, request in (
        (lambda r: validation.check_name(r.name), api.GetEvaluationRequest(name=name)),
        (validation.check_cancel, api.CancelEvaluationRequest(name=name)),
        (validation.check_delete, admin.DeleteEvaluationRequest(name=name)),
        (validation.check_watch, api.WatchEvaluationRequest(name=name)),
        (validation.check_read_output, api.ReadOutputRequest(name=name, stream=1)),
    ):
        assert fields(check, request) == {"name"}


@pytest.mark.parametrize(
    ("check", "request_", "field"),
    [
        (validation.check_list, api.ListEvaluationsRequest(page_size=-1), "page_size"),
        (validation.check_list, api.ListEvaluationsRequest(page_size=1001), "page_size"),
        (validation.check_list, api.ListEvaluationsRequest(states=[0]), "states[0]"),
        (validation.check_list, api.ListEvaluationsRequest(states=[4, 99]), "states[1]"),
        (validation.check_list, api.ListEvaluationsRequest(states=[4] * 1000), "states"),
        (validation.check_list, api.ListEvaluationsRequest(labels={"?": ""}), "labels['?']"),
        (validation.check_list, api.ListEvaluationsRequest(page_token="x" * 5000), "page_token"),
        (validation.check_cancel, api.CancelEvaluationRequest(name=NAME, reason="x" * 257), "reason"),
        (validation.check_delete, admin.DeleteEvaluationRequest(name=NAME, reason="a\0b"), "reason"),
        (validation.check_watch, api.WatchEvaluationRequest(name=NAME, after_position=-1), "after_position"),
        (validation.check_read_output, api.ReadOutputRequest(name=NAME), "stream"),
        (validation.check_read_output, api.ReadOutputRequest(name=NAME, stream=9), "stream"),
        (validation.check_read_output, api.ReadOutputRequest(name=NAME, stream=1, offset=-1), "offset"),
        (validation.check_read_output, api.ReadOutputRequest(name=NAME, stream=1, attempt=-1), "attempt"),
        (validation.check_create_key, admin.CreateApiKeyRequest(), "tenant"),
        (validation.check_create_key, admin.CreateApiKeyRequest(tenant="A"), "tenant"),
        (validation.check_create_key, admin.CreateApiKeyRequest(tenant="a", role=7), "role"),
        (validation.check_create_key, admin.CreateApiKeyRequest(tenant="a", description="x" * 129), "description"),
        (validation.check_revoke_key, admin.RevokeApiKeyRequest(id="a b"), "id"),
        (validation.check_revoke_key, admin.RevokeApiKeyRequest(), "id"),
    ],
)
def test_other_requests_out_of_bounds_are_refused_with_their_field(check, request_, field):
    assert fields(check, request_) == {field}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_path_is_good_exactly_when_the_file_lands_inside_the_workspace(path):
    problem = validation.path_problem(path)
    parts = path.split("/")
    inside = all(part not in ("", ".", "..") for part in parts) and "\0" not in path
    assert (problem is None) == (inside and 1 <= len(path.encode()) <= 255)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(
    paths=st.lists(st.one_of(TEXT, st.sampled_from(["a", "a/b", "b", "../a", "/"])), max_size=6),
    args=st.lists(TEXT, max_size=4),
    env=st.dictionaries(TEXT, TEXT, max_size=4),
    numbers=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6),
    cpus=st.floats(),
)
def test_whatever_comes_is_judged_and_never_breaks(paths, args, env, numbers, cpus):
    request = a_request(files=files(*paths), args=args, env=env)
    request.spec.priority, request.spec.limits.processes = numbers[0], numbers[1]
    request.spec.limits.memory_bytes = numbers[2]
    request.spec.limits.wall_time.seconds, request.spec.limits.wall_time.nanos = numbers[3], numbers[4]
    request.spec.limits.cpus = cpus
    if not wrong(request):
        assert len(set(paths)) == len(paths) > 0
        assert not any(path.startswith("/") or ".." in path.split("/") for path in paths)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_that_are_a_message_are_judged(raw):
    try:
        request = api.RunEvaluationRequest.FromString(raw)
    except DecodeError:
        return
    wrong(request)
