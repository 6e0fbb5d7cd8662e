"""What nobody could see of a limit, as the SDK and the commands show it."""

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1 import platform_pb2 as platform
from crucible.gateway.v1 import platform_service_pb2 as api
from crucible_client import convert
from crucible_client.cli.evaluations import _pairs
from crucible_client.cli.output import plain
from crucible_client.results import EvidenceSource, Limit


def test_limits_that_nobody_could_observe_are_named():
    told = convert.evaluation(pb.Evaluation(unobserved_limits=[pb.LIMIT_PROCESSES, pb.LIMIT_OPEN_FILES]))
    assert told.unobserved_limits == (Limit.PROCESSES, Limit.OPEN_FILES)
    assert dict(_pairs(told))["not observable"] == "whether it hit PROCESSES, OPEN_FILES"
    assert plain(told)["unobserved_limits"] == ["PROCESSES", "OPEN_FILES"]
    assert "not observable" not in dict(_pairs(convert.evaluation(pb.Evaluation())))


def test_a_limit_hit_says_whose_word_it_is():
    evidence = pb.Evidence(source=pb.EVIDENCE_SOURCE_SANDBOX_KERNEL, detail="3 refused")
    told = convert.evaluation(pb.Evaluation(limit_hits=[pb.LimitHit(limit=pb.LIMIT_DISK_INODES, evidence=evidence)]))
    assert told.limit_hits[0].limit is Limit.DISK_INODES
    assert told.limit_hits[0].evidence.source is EvidenceSource.SANDBOX_KERNEL


def test_an_engine_says_what_it_never_sees_and_whether_it_is_being_tried():
    engine = platform.Engine(name="gvisor", not_observable=[pb.LIMIT_OPEN_FILES], breaker_open=True)
    told = convert.capabilities(api.GetCapabilitiesResponse(engines=[engine])).engines[0]
    assert (told.not_observable, told.breaker_open) == ((Limit.OPEN_FILES,), True)
