"""`python -m crucible_executor.verify`: the attack suite over one engine. Needs root.

Exit code: 0 all as promised; 1 an attempt is short of what the engine promises, or a judge is blind; 2 usage; 3 it
could not be run here; 130 stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from crucible_executor import cgroups
from crucible_executor.cgroups import CgroupsUnavailableError
from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.engines.registry import ENGINES, Host
from crucible_executor.images import ImageNotFoundError, ImageStore
from crucible_executor.settings import Settings
from crucible_executor.verify import controls, lines, namespaces, report
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_executor.verify.model import Attempt, ControlFinding, Finding
from crucible_executor.verify.promises import MARGINS, NOT_VERIFIED, PROMISES
from crucible_executor.verify.suite import EXECUTOR_SECRET, Ground, Suite, to_the_end
from crucible_rpc import settings

_CANNOT = 3
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # a file system of the suite's own is mounted there


def main(arguments: list[str]) -> int:
    """Runs the suite, says what came of it, and returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.engine in NOT_VERIFIED:
        return _refuse(f"cannot judge {options.engine}: {NOT_VERIFIED[options.engine]}", 2)
    chosen = [one for one in ATTEMPTS if not options.only or one.name in options.only]
    if options.only and len(chosen) != len(set(options.only)):
        unknown = sorted(set(options.only) - {one.name for one in chosen})
        return _refuse(f"there is no attempt named {', '.join(unknown)}", 2)
    if os.geteuid() != 0:
        return _refuse("`crucible verify` must be started as root: it looks at the sandboxes from outside")
    try:
        with _ground(settings.load(Settings, prefix="CRUCIBLE_EXECUTOR_"), options.name) as (host, ground):
            made = asyncio.run(_run(options, chosen, host, ground))
    except (EngineUnavailableError, CgroupsUnavailableError, ImageNotFoundError, OSError) as error:
        return _refuse(str(error))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return _refuse("stopped; everything that it made is removed", 130)
    return _publish(made, options)


def _publish(made: report.Report, options: argparse.Namespace) -> int:
    if options.lines:
        lines.summary(made)
        return 0 if made.good else 1
    if options.markdown is not None:
        command = f"crucible verify --engine {made.engine}{' --controls' if options.controls else ''} --markdown FILE"
        options.markdown.write_text(report.markdown(made, command))
    print(report.as_json(made) if options.json else report.table(made))  # noqa: T201  # a command's output
    return 0 if made.good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crucible verify", description="Prove isolation from outside.")
    parser.add_argument("--engine", choices=sorted({*PROMISES, *NOT_VERIFIED}), default="gvisor")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the scorecard")
    parser.add_argument("--controls", action="store_true", help="also prove that each judge can say VULNERABLE")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this attempt; may be repeated")
    # The executor's own, when it runs the suite for somebody else: results as they come, and a name to clean up by.
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--name", default=f"cv{uuid.uuid4().hex[:14]}", help=argparse.SUPPRESS)
    return parser


def _refuse(why: str, code: int = _CANNOT) -> int:
    print(f"crucible verify: {why}", file=sys.stderr)  # noqa: T201  # a command's output
    return code


@contextlib.contextmanager
def _ground(given: Settings, name: str) -> Iterator[tuple[Host, Ground]]:
    """Namespaces, folders and cgroups of the suite's own; all of it is gone afterwards.

    From here on this process is in a network without any way out, under another host name.
    """
    image = ImageStore(given.images_dir).resolve("python")
    namespaces.unshare(namespaces.NEWNS | namespaces.NEWUTS | namespaces.NEWIPC | namespaces.NEWNET)
    namespaces.mount("none", "/", None, namespaces.MS_REC | namespaces.MS_PRIVATE)
    namespaces.mount("crucible-verify", _SHARED_MEMORY, "tmpfs", namespaces.MS_NODEV, "mode=1777")
    namespaces.set_host_name(f"vh{uuid.uuid4().hex[:14]}")
    namespaces.bring_up_loopback()
    os.environ[EXECUTOR_SECRET] = f"cx-{uuid.uuid4().hex}"
    runs, bait = Path(_SHARED_MEMORY, name), Path(_SHARED_MEMORY, "bait")
    for folder in (runs, bait):
        folder.mkdir()
    bait.chmod(0o755)
    runs.chmod(0o755)
    place = namespaces.Place(os.getpid())
    tree = cgroups.detect(name)
    tree.prepare()
    try:
        yield (
            Host(given.runsc, given.init_dir, given.images_dir, runs, name),
            Ground(name, bait, runs, image.rootfs, tree, place),
        )
    finally:
        tree.discard()
        place.close()
        shutil.rmtree(runs, ignore_errors=True)
        namespaces.unmount(_SHARED_MEMORY)


async def _run(options: argparse.Namespace, chosen: list[Attempt], host: Host, ground: Ground) -> report.Report:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a coroutine is always run by a task")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    began = time.monotonic()
    progress = lines.Lines() if options.lines else _Progress(len(chosen) * (2 if options.controls else 1))
    engine = ENGINES[options.engine](host)
    try:
        await engine.check()
        suite = Suite(engine, ground, MARGINS[options.engine], PROMISES[options.engine])
        findings = await suite.run(chosen, progress.finding)
        proved = await controls.run(chosen, ground, progress.control) if options.controls else []
    finally:
        await to_the_end(engine.sweep())
    able = engine.capabilities
    return report.Report(options.engine, able.version, able.isolation.value, findings, proved, time.monotonic() - began)


@dataclasses.dataclass
class _Progress:
    """One line per finding on stderr, so that a minute of silence is never a riddle."""

    total: int
    done: int = 0

    def finding(self, one: Finding) -> None:
        self._say(one.attempt.name, one.verdict.value)

    def control(self, one: ControlFinding) -> None:
        self._say(f"control of {one.attempt.name}", one.verdict.value)

    def _say(self, name: str, verdict: str) -> None:
        self.done += 1
        print(f"[{self.done}/{self.total}] {name}: {verdict}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
