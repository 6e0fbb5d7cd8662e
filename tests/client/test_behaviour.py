"""What a program tried, as the SDK and the commands show it."""

from datetime import UTC, datetime

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_client import convert
from crucible_client.cli import exits
from crucible_client.cli.output import plain
from crucible_client.results import Observation, ObservedActions

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
