"""The executor's own checks: they pass where all is well, and say what they measured where it is not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from crucible_executor import cgroups
from crucible_executor.engines.base import Capabilities, Engine, EngineUnavailableError, Sandbox, Sink
from crucible_executor.executor_clock import ExecutorClock
from crucible_executor.model import (
    Exited,
    Isolation,
    Killed,
    Limit,
    Limits,
    Outcome,
    Program,
    SandboxClass,
    Stream,
    Usage,
)
from crucible_executor.selftest import engine as engine_test
from crucible_executor.selftest import journal, machine, model, signatures
from crucible_executor.selftest.model import Check, CheckFailedError, CheckNotRunError, Status
from crucible_executor.settings import Settings
from crucible_executor.tickets import TicketCheck
from crucible_rpc import signing

NOBODY = {"uid": 65534, "gid": 65534, "capabilities": "0", "interfaces": ["lo"], "reached": "refused"}


async def results(checks: Sequence[Check], **options) -> dict[str, model.Result]:
    return {one.name: one async for one in model.run(checks, **options)}


def check(measure) -> Check:
    return Check("part", "it holds", measure)


async def test_a_check_passes_fails_or_is_not_run_and_says_what_was_measured():
    async def passes() -> str:
        return "3 of 3"

    async def fails() -> str:
        raise CheckFailedError("2 of 3")

    async def cannot() -> str:
        raise CheckNotRunError("there is none here")

    async def breaks() -> str:
        raise OSError("the disk is gone")

    async def hangs() -> str:
        await asyncio.Event().wait()
        return ""

    made = [one async for one in model.run(map(check, (passes, fails, cannot, breaks, hangs)), timedelta(seconds=0.2))]
    assert [(one.status, one.evidence) for one in made] == [
        (Status.PASSED, "3 of 3"),
        (Status.FAILED, "2 of 3"),
        (Status.NOT_RUN, "there is none here"),
        (Status.FAILED, "OSError: the disk is gone"),
        (Status.FAILED, "it did not end within 0.2 s"),
    ]
    assert made[-1].seconds >= 0.2


async def test_evidence_is_bounded():
    async def talks() -> str:
        return "x" * 10_000

    (one,) = [one async for one in model.run([check(talks)])]
    assert len(one.evidence) == model.MAX_EVIDENCE_CHARACTERS


async def test_the_journal_is_tried_beside_the_real_one_and_nothing_stays(tmp_path: Path):
    (tmp_path / "journal").write_bytes(b"the real one")
    (one,) = (await results(journal.checks(tmp_path))).values()
    assert one.status is Status.PASSED, one.evidence
    assert "3 entries on disk" in one.evidence
    assert {entry.name for entry in os.scandir(tmp_path)} == {"journal"}
    assert (tmp_path / "journal").read_bytes() == b"the real one"


async def test_a_disk_that_takes_nothing_fails_the_journals_check(tmp_path: Path):
    (one,) = (await results(journal.checks(tmp_path / "missing"))).values()
    assert one.status is Status.FAILED
    assert "FileNotFoundError" in one.evidence


def ticket_check() -> TicketCheck:
    public = signing.generate().public_pem
    return TicketCheck(signing.Verifier.of(public), "x-1", "b-1", timedelta(seconds=15), ExecutorClock("b-1"))


async def test_signatures_and_tickets_hold():
    made = await results(signatures.checks(signing.Signer(signing.generate().private_pem), ticket_check()))
    assert {one.status for one in made.values()} == {Status.PASSED}, made


async def test_a_ticket_check_that_believes_everybody_fails():
    class Credulous(TicketCheck):
        def read(self, signed):
            return None

    credulous = Credulous(signing.Verifier({}), "x-1", "b-1", timedelta(seconds=15), ExecutorClock("b-1"))
    made = await results(signatures.checks(signing.Signer(signing.generate().private_pem), credulous))
    assert made["only storage's ticket for this start is accepted"].status is Status.FAILED
    assert made["only storage's ticket for this start is accepted"].evidence == "accepted although forged"


class Actor(Sandbox):
    """Says what it is told to say, as its program; its "process" on the host is one of ours with its name."""

    def __init__(self, engine: ActorEngine) -> None:
        self._engine = engine
        self._id = f"actor-{uuid.uuid4().hex}"
        self._killed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def id(self) -> str:
        return self._id

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        self._process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", "read x", self._id, stdin=asyncio.subprocess.PIPE
        )
        usage = Usage(timedelta(0), None, None, None)
        if len(program.command) < 3:
            return Outcome(self._engine.hog_ends, (), usage)
        token, port = program.command[-2:]
        if self._engine.calls_home:
            _, writer = await asyncio.open_connection("127.0.0.1", int(port))
            writer.close()
        said = {"token": token, **NOBODY, **self._engine.says}
        sink.output(Stream.STDOUT, json.dumps(said).encode() + b"\n")
        await self._killed.wait()
        return Outcome(Killed(), (), usage)

    async def kill(self) -> None:
        if self._process is not None and not self._engine.survives:
            await self._end()
        self._killed.set()

    async def destroy(self) -> None:
        if self._process is not None and not self._engine.survives:
            await self._end()

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def bury(self) -> None:
        await self._end()


class ActorEngine(Engine):
    def __init__(self, *, calls_home: bool = False, survives: bool = False, hog_ends: object = None, **says) -> None:
        self.calls_home = calls_home
        self.survives = survives
        self.hog_ends = hog_ends or Exited(0)
        self.says = says
        self.made: list[Actor] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("actor", "1", Isolation.USER_KERNEL, frozenset({Limit.MEMORY}))

    async def check(self) -> None:
        await engine_test.prove(self)

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        self.made.append(Actor(self))
        return self.made[-1]

    async def sweep(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("faults", "name", "evidence"),
    [
        ({"token": "guessed"}, "a program runs and prints its token", "did not print its token"),
        ({"uid": 0}, "it is user 65534 without capabilities", "uid 0, gid 65534"),
        ({"capabilities": "0000000000200000"}, "it is user 65534 without capabilities", "0000000000200000"),
        ({"interfaces": ["lo", "eth0"]}, "it has no network", "eth0"),
        ({"calls_home": True}, "it has no network", "1 connection(s) came to a listener of the host"),
        ({"survives": True}, "killed, it is gone from the host", "are left"),
        ({}, "the memory limit ends a program", "went beyond 67108864 bytes"),
    ],
)
async def test_an_engine_that_breaks_a_promise_fails_that_check_and_is_not_offered(faults, name, evidence):
    engine = ActorEngine(**faults)
    made = await results(engine.self_test())
    assert made[name].status is Status.FAILED
    assert evidence in made[name].evidence
    with pytest.raises(EngineUnavailableError, match="its self-test failed: "):
        await engine.check()
    for actor in engine.made:
        await actor.bury()


async def test_what_an_engine_without_a_running_program_would_show_is_not_run_and_not_passed():
    class Dead(ActorEngine):
        async def create(self, sandbox_class: SandboxClass) -> Sandbox:
            raise EngineUnavailableError("no runtime")

    made = await results(Dead().self_test())
    statuses = [one.status for one in made.values()]
    assert statuses == [Status.FAILED, Status.NOT_RUN, Status.NOT_RUN, Status.NOT_RUN, Status.FAILED]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(run_dir=tmp_path / "run", state_dir=tmp_path, cgroup=f"crucible-test-{uuid.uuid4().hex[:12]}")


@pytest.mark.root
async def test_the_machines_checks_pass_and_leave_nothing(settings: Settings):
    made = await results(machine.checks(settings))
    assert {name: one.evidence for name, one in made.items() if one.status is not Status.PASSED} == {}
    assert not settings.run_dir.exists() or list(settings.run_dir.iterdir()) == []
    tree = cgroups.detect(f"{settings.cgroup}-selftest")
    assert not any(folder.exists() for folder in tree.folders) if hasattr(tree, "folders") else tree.existing() == []


@pytest.mark.root
async def test_a_start_removes_what_a_self_test_left(settings: Settings):
    tree = cgroups.detect(f"{settings.cgroup}-selftest")
    tree.prepare()
    group = tree.create("left", cgroups.Bounds(64 << 20, 16))
    process = await asyncio.create_subprocess_exec("/bin/sleep", "60")
    for file in group.procs_files:
        file.write_text(str(process.pid))
    await machine.sweep(settings)
    assert await asyncio.wait_for(process.wait(), 10) == -9
    assert not group.exists


async def test_an_init_that_others_can_write_fails_its_check(settings: Settings, tmp_path: Path):
    folder = tmp_path / "init"
    folder.mkdir()
    for name in ("crucible-init", "crucible-launch"):
        shutil.copy("/bin/true", folder / name)
        (folder / name).chmod(0o777)
    made = await results(machine.checks(Settings(init_dir=folder, images_dir=tmp_path, run_dir=tmp_path / "run")))
    one = made["it needs nothing of the image, and nobody else can change it"]
    assert one.status is Status.FAILED
    assert "not static" in one.evidence or "written by others" in one.evidence
    assert made["each runtime's root file system is whole and nobody else's"].status is Status.FAILED
    assert os.geteuid() == 0 or made["processes are bounded, stopped and ended from outside"].status is Status.NOT_RUN
