"""Runs the attack suite as a child process, in a cgroup and under a name of its own, and removes all that it made.

The child is `python -m crucible_executor.verify`, never with its controls. It takes namespaces of its own, so what it
does to "the host" it does to these. It ends with this process, and the executor's next start removes what it left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible_executor import cgroups
from crucible_executor.cgroups import Bounds, Cgroup, CgroupsUnavailableError
from crucible_executor.host_pipes import PipeReader, pipe_from_child
from crucible_executor.host_process import HostProcess
from crucible_executor.inspections import Found, SuiteFailedError
from crucible_executor.selftest.model import MAX_EVIDENCE_CHARACTERS
from crucible_executor.settings import Settings
from crucible_executor.verify import enclosure
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_rpc import logs
from crucible_rpc.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError

MODULE = "crucible_executor.verify"
_BOUNDS = Bounds(memory_bytes=1 << 30, tasks=512)
_MAX_LINE_BYTES = 64 << 10
_MAX_LINES = len(ATTEMPTS) + 1
_MAX_SAID_BYTES = 4096
_STOP_SECONDS = 15.0
_GOOD_OR_SHORT = (0, 1)
_log = logging.getLogger(__name__)


class ChildSuite:
    """See `inspections.AttackSuite`.

    Args:
        settings: where runsc, the init and the images are.
        state_dir: where the name of a run under way is written down.
        executor_id: for the summary.
        command: starts the suite.
    """

    def __init__(
        self,
        settings: Settings,
        state_dir: Path,
        executor_id: str,
        command: Sequence[str] = (sys.executable, "-I", "-m", MODULE),
    ) -> None:
        self._settings = settings
        self._note = state_dir / "attack-suite"
        self._executor_id = executor_id
        self._command = tuple(command)

    async def run(self, engine: str, attempts: list[str]) -> AsyncGenerator[Found, None]:
        """See `AttackSuite.run`."""
        unknown = sorted(set(attempts) - {one.name for one in ATTEMPTS})
        if unknown:
            violation = FieldViolation("attempts", f"the suite has no attempt named {', '.join(unknown)}"[:400])
            raise InvalidArgumentError("INVALID_FIELD", violation.description, [violation])
        name = f"cv{uuid.uuid4().hex[:14]}"
        self._note.write_text(f"{name} {engine}\n")
        try:
            group = self._own_cgroup(name)
            child = self._start(engine, attempts, name, group)
            try:
                count, summary = 0, None
                async with aclosing(child.records()) as records:
                    async for record in records:
                        found = self._found(record)
                        count += 1
                        if isinstance(found, pb.VerificationSummary):
                            summary = found
                        else:
                            yield found
                yield _judged(await child.ended(), summary, count, child.last_words())
            finally:
                await child.stop(group)
        except CgroupsUnavailableError as error:
            raise FailedPreconditionError("CANNOT_VERIFY", str(error)) from error
        finally:
            await self._clean(name)

    async def sweep(self) -> None:
        """Removes what a run left whose executor ended meanwhile. At start."""
        with contextlib.suppress(CgroupsUnavailableError):
            await _removed(self._cgroup)
        if self._note.exists():
            name, _, engine = self._note.read_text().strip().partition(" ")
            _log.warning("removing what an attack suite left", extra=logs.fields(suite=name, engine=engine))
            await self._clean(name)

    @property
    def _cgroup(self) -> str:
        return f"{self._settings.cgroup}-inspect"

    def _own_cgroup(self, name: str) -> Cgroup:
        tree = cgroups.detect(self._cgroup)
        tree.prepare()
        return tree.create(name, _BOUNDS)

    def _start(self, engine: str, attempts: list[str], name: str, group: Cgroup) -> _Child:
        argv = [
            str(self._settings.init_dir / "crucible-launch"), str(os.getpid()), *map(str, group.procs_files), "--",
            *self._command, "--engine", engine, "--lines", "--name", name,
        ]  # fmt: skip
        for attempt in attempts:
            argv += ["--only", attempt]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "CRUCIBLE_EXECUTOR_RUNSC": str(self._settings.runsc),
            "CRUCIBLE_EXECUTOR_INIT_DIR": str(self._settings.init_dir),
            "CRUCIBLE_EXECUTOR_IMAGES_DIR": str(self._settings.images_dir),
            "CRUCIBLE_EXECUTOR_TRACE_USER": self._settings.trace_user,
        }
        return _Child(argv, environment)

    def _found(self, record: dict[str, Any]) -> Found:
        try:
            if record["kind"] == "summary":
                return _summary(record, self._executor_id)
            return _attempt(record)
        except (KeyError, TypeError, ValueError) as error:
            raise SuiteFailedError("the attack suite said something that it never says") from error

    async def _clean(self, name: str) -> None:
        """Removes the cgroups of the suite of this name, and its note when nothing is left.

        Its processes, mounts and files are in namespaces that end with it.
        """
        try:
            for cgroup in (name, self._cgroup):
                await _removed(cgroup)
            left = await asyncio.to_thread(enclosure.remove_cgroups, name)
        except Exception:
            _log.exception("what the attack suite left cannot be removed; the next start tries again")
            return
        if left is not None:
            _log.error(
                "a cgroup of the attack suite is left; the next start tries again", extra=logs.fields(folder=str(left))
            )
            return
        self._note.unlink(missing_ok=True)


class _Child:
    """The running suite."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self._partial = b""
        self._said = b""
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._count = 0
        with contextlib.ExitStack() as given:
            ours, out = pipe_from_child(given)
            self._out = PipeReader(ours, self._arrived)
            ours, errors = pipe_from_child(given)
            self._errors = PipeReader(ours, self._complained)
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            given.callback(os.close, null)
            self._process = HostProcess(argv, stdin=null, stdout=out, stderr=errors, env=environment)
        self._out.finished.add_done_callback(lambda _: self._lines.put_nowait(None))

    async def records(self) -> AsyncGenerator[dict[str, Any], None]:
        """What it says, one by one, until it closes its output."""
        while (line := await self._lines.get()) is not None:
            if len(line) > _MAX_LINE_BYTES:
                raise SuiteFailedError("the attack suite wrote a line that is too long")
            try:
                record = json.loads(line)
            except ValueError as error:
                raise SuiteFailedError("the attack suite wrote a line that is no JSON") from error
            if not isinstance(record, dict):
                raise SuiteFailedError("the attack suite said something that it never says")
            yield record
        if self._count > _MAX_LINES:
            raise SuiteFailedError("the attack suite wrote more lines than it has attempts")

    async def ended(self) -> int:
        """Its exit code."""
        return await asyncio.shield(self._process.exited)

    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        lines = self._said.decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("crucible verify: ")[:MAX_EVIDENCE_CHARACTERS] if lines else ""

    async def stop(self, group: Cgroup) -> None:
        """Ends it unless it has ended: by a request, so that it cleans up, then by force with all in its cgroup."""
        self._process.signal(signal.SIGTERM)
        await asyncio.wait([self._process.exited], timeout=_STOP_SECONDS)
        self._process.signal(signal.SIGKILL)
        await group.kill()
        await group.remove()
        self._out.close()
        self._errors.close()

    def _arrived(self, data: bytes) -> None:
        *whole, self._partial = (self._partial + data).split(b"\n")
        for line in whole[: _MAX_LINES - self._count]:
            self._lines.put_nowait(line)
        self._count += len(whole)
        if self._count > _MAX_LINES:
            self._out.close()
        elif len(self._partial) > _MAX_LINE_BYTES:
            self._lines.put_nowait(self._partial)
            self._out.close()

    def _complained(self, data: bytes) -> None:
        self._said = (self._said + data)[-_MAX_SAID_BYTES:]


async def _removed(cgroup: str) -> None:
    """Ends and removes everything in our folder of this name."""
    tree = cgroups.detect(cgroup)
    for group in tree.existing():
        await group.kill()
        await group.remove()
    tree.discard()


def _judged(code: int, summary: pb.VerificationSummary | None, count: int, said: str) -> pb.VerificationSummary:
    """The summary, when the suite ended as it should.

    Raises:
        FailedPreconditionError: CANNOT_VERIFY, it refused to begin.
        SuiteFailedError: it ended early.
    """
    if code in _GOOD_OR_SHORT and summary is not None:
        return summary
    if code > 1 and count == 0:
        raise FailedPreconditionError("CANNOT_VERIFY", said or f"the attack suite ended with exit code {code}")
    raise SuiteFailedError(f"the attack suite ended early, with {_ending(code)}: {said or 'without a word'}")


def _attempt(record: dict[str, Any]) -> pb.AttemptResult:
    made = pb.AttemptResult(
        name=str(record["name"]),
        family=str(record["family"]),
        breach=str(record["breach"]),
        verdict=pb.Verdict.Value(f"VERDICT_{record['verdict']}"),
        promised=bool(record["promised"]),
        evidence=str(record["evidence"])[:MAX_EVIDENCE_CHARACTERS],
    )
    made.duration.FromMilliseconds(int(float(record["seconds"]) * 1000))
    return made


def _summary(record: dict[str, Any], executor_id: str) -> pb.VerificationSummary:
    counts = record["counts"]
    made = pb.VerificationSummary(
        executor=executor_id,
        engine=str(record["engine"]),
        engine_version=str(record["version"]),
        isolation=ev.Isolation.Value(f"ISOLATION_{record['isolation']}"),
        contained=int(counts["CONTAINED"]),
        vulnerable=int(counts["VULNERABLE"]),
        not_run=int(counts["NOT_RUN"]),
        short_of_promise=int(record["short"]),
        attempts_known=int(record["known"]),
    )
    made.duration.FromMilliseconds(int(float(record["seconds"]) * 1000))
    return made


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
