import pytest

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import platform_pb2 as platform
from crucible_gateway import limits
from crucible_rpc.errors import FailedPreconditionError, InvalidArgumentError
from tests.gateway.conftest import a_spec
from tests.gateway.fake_servicer import ALL_LIMITS, MIB, an_executor


def defaults(**more):
    values = {"cpus": 1.0, "memory_bytes": 512 * MIB, "processes": 64, "output_bytes": MIB, "disk_bytes": 64 * MIB}
    made = ev.Limits(**{**values, **more})
    made.wall_time.seconds = 30
    return limits.Defaults(made)


def completed(spec, *executors, with_defaults=None):
    limits.complete(spec, executors or [an_executor()], with_defaults or defaults())
    return spec


def engine(name="gvisor", **more):
    return platform.Engine(**{"name": name, "enforces": ALL_LIMITS, "available": True, **more})


def refusal(spec, *executors, reason):
    with pytest.raises(FailedPreconditionError) as caught:
        limits.complete(spec, executors, defaults())
    assert caught.value.reason == reason
    return caught.value


def test_what_is_left_out_is_filled_in():
    spec = completed(a_spec())
    assert spec.engine == "gvisor"
    assert spec.program.entrypoint == "main.py"
    assert spec.limits == defaults().limits


def test_what_is_given_stays():
    asked = ev.Limits(memory_bytes=100 * MIB, disk_bytes=MIB)
    spec = completed(a_spec(limits=asked))
    assert (spec.limits.memory_bytes, spec.limits.disk_bytes, spec.limits.processes) == (100 * MIB, MIB, 64)


def test_limit_above_the_ceiling_is_refused_never_clamped():
    asked = ev.Limits(memory_bytes=4096 * MIB, processes=1000)
    asked.wall_time.seconds = 301
    with pytest.raises(InvalidArgumentError) as caught:
        completed(a_spec(limits=asked))
    told = {each.field: each.description for each in caught.value.violations}
    assert set(told) == {"spec.limits.memory_bytes", "spec.limits.processes", "spec.limits.wall_time"}
    assert told["spec.limits.wall_time"] == "must be at most 300 s"


def test_files_that_do_not_fit_the_disk_are_refused():
    spec = a_spec(limits=ev.Limits(disk_bytes=8192))
    spec.program.files[0].content = b"x" * 8193
    with pytest.raises(InvalidArgumentError) as caught:
        completed(spec)
    assert [each.field for each in caught.value.violations] == ["spec.program.files"]
    spec.program.files[0].content = b"x" * 8192
    completed(spec)


def test_a_nanosecond_above_the_ceiling_is_above_it():
    asked = ev.Limits()
    asked.wall_time.seconds, asked.wall_time.nanos = 300, 1
    with pytest.raises(InvalidArgumentError):
        completed(a_spec(limits=asked))


def test_default_above_the_ceiling_becomes_the_ceiling():
    assert completed(a_spec(), an_executor(memory_bytes=100 * MIB)).limits.memory_bytes == 100 * MIB


def test_one_executor_must_allow_all_limits_together():
    small = an_executor("a", memory_bytes=128 * MIB, processes=1000)
    narrow = an_executor("b", memory_bytes=1024 * MIB, processes=10)
    asked = ev.Limits(memory_bytes=512 * MIB, processes=500)
    with pytest.raises(InvalidArgumentError):
        completed(a_spec(limits=asked), small, narrow)
    completed(a_spec(limits=asked), small, narrow, an_executor("c", processes=1000))


def test_without_any_executor_nothing_is_taken():
    assert "registered" in refusal(a_spec(), reason="ENGINE_NOT_AVAILABLE").message


def test_unknown_engine_is_refused_with_those_there_are():
    error = refusal(a_spec(engine="kvm"), an_executor(), reason="ENGINE_NOT_AVAILABLE")
    assert "gvisor" in error.message
    assert error.metadata["field"] == "spec.engine"


def test_engine_that_is_not_available_is_refused_with_the_reason():
    error = refusal(a_spec(engine="subprocess"), an_executor(), reason="ENGINE_NOT_AVAILABLE")
    assert "start it with --unsafe" in error.message


def test_runtime_that_no_executor_has_is_refused_with_those_there_are():
    spec = a_spec()
    spec.program.runtime = "cobol"
    error = refusal(spec, an_executor(), reason="RUNTIME_NOT_AVAILABLE")
    assert "python" in error.message
    assert error.metadata["field"] == "spec.program.runtime"


def test_runtime_whose_image_is_nowhere_is_refused_with_how_to_get_it():
    spec = a_spec()
    spec.program.runtime = "node"
    error = refusal(spec, an_executor(lacks=["node"]), an_executor(), reason="RUNTIME_NOT_AVAILABLE")
    assert "build the image of node" in error.message
    completed(spec, an_executor(lacks=["node"]), an_executor(runtimes=["node"]))
    spec.program.runtime = "cobol"
    assert "node" not in refusal(spec, an_executor(lacks=["node"]), reason="RUNTIME_NOT_AVAILABLE").message


def test_limit_that_the_engine_cannot_enforce_is_refused_only_when_asked_for():
    weak = an_executor(engines=[engine(enforces=[ev.LIMIT_WALL_TIME])])
    error = refusal(a_spec(limits=ev.Limits(memory_bytes=100 * MIB)), weak, reason="LIMIT_NOT_ENFORCEABLE")
    assert "spec.limits.memory_bytes" in error.message
    filled = completed(a_spec(), weak).limits
    assert (filled.wall_time.seconds, filled.output_bytes) == (30, MIB)
    assert (filled.memory_bytes, filled.processes, filled.cpus, filled.disk_bytes) == (0, 0, 0, 0)


def test_inodes_are_a_limit_of_their_own_which_not_every_engine_enforces():
    asked = ev.Limits(disk_inodes=100)
    refusal(a_spec(limits=asked), an_executor(disk_inodes=1000), reason="LIMIT_NOT_ENFORCEABLE")
    able = an_executor(engines=[engine(enforces=[*ALL_LIMITS, ev.LIMIT_DISK_INODES])], disk_inodes=1000)
    assert completed(a_spec(limits=asked), able).limits.disk_inodes == 100


def test_executors_that_are_known_but_not_live_are_waited_for():
    assert completed(a_spec(), an_executor(live=False)).engine == "gvisor"


def test_live_executor_counts_before_one_that_is_away():
    away = an_executor("a", live=False, memory_bytes=8192 * MIB)
    with pytest.raises(InvalidArgumentError):
        completed(a_spec(limits=ev.Limits(memory_bytes=4096 * MIB)), away, an_executor("b"))


def test_default_engine_of_the_settings_counts_before_the_executors():
    chosen = limits.Defaults(defaults().limits, engine="docker")
    both = an_executor(engines=[engine(), engine("docker")])
    assert completed(a_spec(), both, with_defaults=chosen).engine == "docker"


def test_highest_ceilings_are_of_the_live_executors():
    highest = limits.highest_ceilings(
        [an_executor("a"), an_executor("b", processes=999), an_executor("c", live=False, processes=5000)]
    )
    assert (highest.processes, highest.wall_time.seconds, highest.disk_inodes) == (999, 300, 0)
