"""What a program tried, as the SDK and the commands show it."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf import json_format

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1 import event_pb2
from crucible_client import convert, results
from crucible_client.cli import exits
from crucible_client.cli.output import plain
from crucible_client.results import Observation, ObservedActions
from tests.client.gateway_servicer import script

TIME = datetime(2030, 1, 2, tzinfo=UTC)
KINDS = ("programs", "files_written", "probes", "sockets", "connections", "processes", "privilege")


def message(**more: object) -> pb.Evaluation:
    made = pb.Evaluation(behaviour=pb.Behaviour(observation=pb.OBSERVATION_OBSERVED, **more))
    for kind in KINDS:
        getattr(made.behaviour, kind).SetInParent()
    return made


def test_observed_actions_are_told_with_their_zeros():
    said = message()
    said.behaviour.probes.count = 12
    said.behaviour.probes.first_time.FromDatetime(TIME)
    said.behaviour.probes.examples.extend(["/etc/shadow", "/proc/1"])
    behaviour = convert.evaluation(said).behaviour
    assert behaviour.observation is Observation.OBSERVED
    assert behaviour.probes == ObservedActions(12, TIME, ("/etc/shadow", "/proc/1"))
    assert behaviour.programs == ObservedActions(0, None, ())
    assert exits.tried(behaviour) == [
        ("behaviour", "OBSERVED"),
        ("secrets and internals", "12 (/etc/shadow, /proc/1, …)"),
    ]
    assert plain(behaviour)["probes"]["first_time"] == "2030-01-02T00:00:00+00:00"


def test_what_nobody_watched_has_a_reason_and_no_counts():
    said = pb.Behaviour(observation=pb.OBSERVATION_NOT_OBSERVED, reason="the engine docker has no trace")
    behaviour = convert.evaluation(pb.Evaluation(behaviour=said)).behaviour
    assert [getattr(behaviour, kind) for kind in KINDS] == [None] * len(KINDS)
    assert exits.tried(behaviour) == [("behaviour", "NOT_OBSERVED: the engine docker has no trace")]
    assert plain(behaviour)["probes"] is None


def test_an_evaluation_that_has_not_ended_or_never_ran_has_none():
    assert convert.evaluation(pb.Evaluation()).behaviour is None


def test_an_observation_of_a_newer_server_is_unknown():
    said = pb.Evaluation.FromString(b"\xa2\x01\x02\x08\x63")  # field 20: observation 99
    assert convert.evaluation(said).behaviour.observation is Observation.UNKNOWN


# While the program runs.

UPDATES = [
    {
        "sequence": 1,
        "observation": "OBSERVATION_OBSERVED",
        "actions": [
            {"kind": "ACTION_KIND_PROBES", "example": "/etc/shadow", "count": "1", "sinceStart": "0.250s"},
            {"kind": "ACTION_KIND_CONNECTIONS", "example": "10.0.0.1:80", "count": "3", "sinceStart": "1.500s"},
        ],
        "exhausted": ["ACTION_KIND_FILES_WRITTEN"],
    },
    {"sequence": 2, "observation": "OBSERVATION_NOT_OBSERVED", "reason": "the reader died \x1b[2J"},
]


def seen(update: dict) -> results.BehaviourSeen:
    message = event_pb2.Event(position=3, evaluation="evaluations/e", attempt=1)
    json_format.ParseDict(update, message.behaviour)
    event = convert.event(message)
    assert isinstance(event, results.BehaviourSeen)
    return event


def test_update_is_a_typed_event():
    first, last = (seen(update) for update in UPDATES)
    assert (first.position, first.attempt, first.sequence) == (3, 1, 1)
    assert first.observation is Observation.OBSERVED
    assert first.actions[0] == results.SeenAction(
        results.ActionKind.PROBES, "/etc/shadow", 1, timedelta(milliseconds=250)
    )
    assert first.exhausted == (results.ActionKind.FILES_WRITTEN,)
    assert (last.observation, last.actions) == (Observation.NOT_OBSERVED, ())
    assert plain(first)["actions"][1] == {
        "kind": "CONNECTIONS", "example": "10.0.0.1:80", "count": 3, "since_start_seconds": 1.5
    }  # fmt: skip


def test_kinds_of_a_newer_server_are_unknown():
    message = event_pb2.Event()
    message.behaviour.actions.add(kind=99, example="x", count=1)
    message.behaviour.exhausted.append(99)
    event = convert.event(message)
    assert event.actions[0].kind is event.exhausted[0] is results.ActionKind.UNKNOWN
    assert exits.told(event)[0] == ("something else", "at ? no. 1: x")


def test_every_kind_of_the_summary_has_its_kind_of_action():
    assert {kind.value.lower() for kind in results.ActionKind} - {"unknown"} == set(KINDS)


@pytest.fixture
def program(tmp_path) -> str:
    path = tmp_path / "program.py"
    path.write_text(script(tried=UPDATES))
    return str(path)


LINES = [
    "secrets and internals at 0.250 s no. 1: /etc/shadow",
    "connections at 1.500 s no. 3: 10.0.0.1:80",
    "files opened to write no more of these are told until the end: so many were",
    r"behaviour NOT_OBSERVED: the reader died \x1b[2J",
]


async def test_watch_prints_a_line_for_each_action_and_escapes_it(crucible, program):
    [name] = (await crucible("submit", program)).lines
    lines = [line.split("\t") for line in (await crucible("watch", name)).lines]
    assert [line[4] for line in lines if line[3] == "BEHAVIOUR"] == LINES
    events = [json.loads(line) for line in (await crucible("watch", "--json", name)).lines]
    told = [event for event in events if event["kind"] == "BEHAVIOUR"]
    assert [event["sequence"] for event in told] == [1, 2]
    assert told[0]["actions"][0]["example"] == "/etc/shadow"


async def test_run_tells_on_stderr_what_the_program_tries_when_asked(crucible, program):
    ran = await crucible("run", "--tried", program)
    assert ran.err.decode().splitlines() == [f"crucible: {line}" for line in LINES]
    assert (await crucible("run", program)).err == b""
    ran = await crucible("run", "--tried", "--json", program)
    assert json.loads(ran.out)["state"] == "SUCCEEDED"
    assert len(ran.err.splitlines()) == len(LINES)
