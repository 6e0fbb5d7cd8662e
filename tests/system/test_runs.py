"""Programs through the whole stack, and the stack's own commands."""

import asyncio
import json
from datetime import timedelta

import pytest

from crucible.executor.v1.executor_service_pb2 import FinalRecord
from crucible_client import Cancelled, Exited, Limit, LimitExceeded, Limits, Signalled, State
from crucible_client.results import (
    EvidenceSource,
    Isolation,
    Observation,
    OutputChunk,
    StartKind,
    StateChanged,
    Stream,
)
from crucible_deploy import host
from tests.system.local import python

KINDS = ("programs", "files_written", "probes", "sockets", "connections", "processes", "privilege")


async def test_hello_runs_in_gvisor_and_says_what_ran_it(client):
    done = await client.run(python("import sys\nprint('hello')\nprint('oops', file=sys.stderr)"))
    assert done.state is State.SUCCEEDED
    assert done.termination == Exited(0, evidence=done.termination.evidence)
    assert done.termination.evidence.source is EvidenceSource.SANDBOX_INIT
    assert await client.output(done.name) == b"hello\n"
    assert await client.output(done.name, Stream.STDERR) == b"oops\n"
    assert done.provenance.engine == "gvisor"
    assert done.provenance.isolation is Isolation.USER_KERNEL
    assert done.provenance.image_digest.startswith("sha256:")
    assert done.provenance.record is not None
    assert done.provenance.start_kind in (StartKind.COLD, StartKind.WARM)
    assert done.attempt == 1
    assert done.usage.peak_memory_bytes > 0


async def test_a_result_says_that_its_sandbox_was_booted_ahead_and_is_the_same_for_it(stack, client):
    code = "import os\nprint(os.getpid(), os.listdir('/tmp'))"
    async with asyncio.timeout(120):
        while (done := await client.run(python(code))).provenance.start_kind is not StartKind.WARM:  # noqa: ASYNC110
            await asyncio.sleep(1)  # the pool boots ahead while nothing runs
    assert done.stdout.preview == b"2 []\n"
    shown = stack.crucible("get", "--json", done.name)
    assert json.loads(shown.stdout)["provenance"]["start_kind"] == "WARM"


@pytest.mark.parametrize(
    ("code", "kind", "value"),
    [
        ("raise SystemExit(7)", Exited, 7),
        ("1/0", Exited, 1),
        ("import os; os.kill(os.getpid(), 9)", Signalled, 9),
    ],
)
async def test_a_programs_own_ending_is_told(client, code, kind, value):
    done = await client.run(python(code))
    assert done.state is State.FAILED
    assert done.termination == kind(value, evidence=done.termination.evidence)


async def test_limits_end_a_program_with_evidence_from_outside(client):
    slow = python("while True: pass", limits=Limits(wall_time=timedelta(seconds=1)))
    done = await client.run(slow)
    assert isinstance(done.termination, LimitExceeded)
    assert done.termination.limit is Limit.WALL_TIME
    assert done.termination.evidence.source is EvidenceSource.EXECUTOR_CLOCK
    hog = python("x = b'x' * (1 << 30)", limits=Limits(memory_bytes=128 << 20))
    done = await client.run(hog)
    assert isinstance(done.termination, LimitExceeded)
    assert done.termination.limit is Limit.MEMORY
    assert done.termination.evidence.source is EvidenceSource.CGROUP


async def test_cancel_ends_the_sandbox_and_is_confirmed(stack, client):
    running = await client.submit(python("print('up', flush=True)\nimport time; time.sleep(60)"))
    async for event in client.watch(running.name):
        if isinstance(event, OutputChunk):
            assert event.data == b"up\n"
            assert host.traces(stack.layout).processes
            await client.cancel(running.name, reason="enough")
    done = await client.get(running.name)
    assert done.state is State.CANCELLED
    assert isinstance(done.termination, Cancelled)
    assert done.termination.reason == "enough"
    assert done.termination.confirmed
    assert not host.wait_for_none(stack.layout, 5, spare_waiting=True)


async def test_a_watch_replays_and_resumes_by_position(client):
    done = await client.run(python("print('a')"))
    events = [event async for event in client.watch(done.name)]
    states = [event.state for event in events if isinstance(event, StateChanged)]
    assert states == [State.QUEUED, State.STARTING, State.RUNNING, State.SUCCEEDED]
    positions = [event.position for event in events]
    assert positions == sorted(set(positions))
    again = [event async for event in client.watch(done.name, after_position=positions[1])]
    assert again == events[2:]


def test_the_command_line_passes_output_and_exit_code_through(stack, tmp_path):
    file = tmp_path / "main.py"
    file.write_text("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)\n")
    done = stack.crucible("run", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    done = stack.crucible("run", "--json", str(file))
    assert json.loads(done.stdout)["state"] == "FAILED"
    assert stack.crucible("status").returncode == 0


async def test_what_a_program_tried_is_in_its_result_and_in_the_signed_record(stack, client, tmp_path):
    quiet = await client.run(python("print(1)"))
    assert (quiet.behaviour.observation, quiet.behaviour.dropped) == (Observation.OBSERVED, 0)
    assert {getattr(quiet.behaviour, kind).count for kind in KINDS} == {0}

    file = tmp_path / "main.py"
    file.write_text(
        "import os, socket\ntry: open('/etc/shadow')\nexcept OSError: pass\n"
        "try: socket.create_connection(('127.0.0.1', 1))\nexcept OSError: pass\nos.system('true')\n"
    )
    told = json.loads(stack.crucible("run", "--json", str(file)).stdout)["behaviour"]
    assert told["observation"] == "OBSERVED"
    assert told["probes"]["examples"] == ["/etc/shadow"]
    assert told["connections"]["examples"] == ["127.0.0.1:1"]
    assert told["processes"]["count"] >= 1
    assert told["privilege"] == {"count": 0, "first_time": None, "examples": []}

    done = await client.run(python("open('/tmp/kept', 'w')"))
    record = FinalRecord.FromString(done.provenance.record.payload)
    assert list(record.behaviour.files_written.examples) == ["/tmp/kept"]
    assert "files opened to write" in stack.crucible("get", done.name).stdout


def test_up_twice_says_that_it_runs_and_leaves_it_alone(stack):
    before = stack.processes()
    done = stack.crucible("up", "--detach")
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert stack.layout.address("gateway") in done.stderr
    assert stack.processes() == before


def test_up_without_root_is_one_clear_line(stack):
    done = stack.crucible("up", user=65534, group=65534, extra_groups=[])
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "root" in done.stderr


async def test_no_key_and_a_wrong_key_are_refused(stack):
    from crucible_client import AsyncClient, ClientSettings
    from crucible_client.errors import UnauthenticatedError

    wrong = ClientSettings(stack.layout.address("gateway"), "x" * 43, stack.layout.pki / "ca.crt")
    async with AsyncClient(wrong) as client:
        with pytest.raises(UnauthenticatedError):
            await client.run(python("print(1)"))
