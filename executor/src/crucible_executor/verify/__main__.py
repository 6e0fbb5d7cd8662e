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
import pwd
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from crucible_executor import cgroups, composition
from crucible_executor.cgroups import CgroupsUnavailableError
from crucible_executor.engines.base import Engine, EngineUnavailableError
from crucible_executor.engines.registry import ENGINES, Host
from crucible_executor.images import ImageNotFoundError, ImageStore
from crucible_executor.settings import Settings
from crucible_executor.verify import controls, demonstrate, enclosure, lines, namespaces, private_dockerd, report
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_executor.verify.model import Attempt, ControlFinding, Finding
from crucible_executor.verify.promises import LESS, MARGINS, NOT_VERIFIED, PROMISES
from crucible_executor.verify.suite import EXECUTOR_SECRET, Ground, Suite, to_the_end
from crucible_rpc import settings

_CANNOT = 3
_OVER_DOCKER = frozenset({"docker", "docker-gvisor"})
_OTHER_READER = "daemon"
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
    if options.demonstrate and (options.only or options.controls or options.markdown):
        return _refuse("--demonstrate judges nothing: leave out --only, --controls and --markdown", 2)
    if os.geteuid() != 0:
        return _refuse("`crucible verify` must be started as root: it looks at the sandboxes from outside")
    try:
        return enclosure.run(lambda: _inside(options, chosen), options.name)
    except OSError as error:
        return _refuse(str(error))


def _inside(options: argparse.Namespace, chosen: list[Attempt]) -> int:
    """All that happens in the suite's namespaces."""
    try:
        given = dataclasses.replace(settings.load(Settings, prefix="CRUCIBLE_EXECUTOR_"), cgroup=options.name)
        with _ground(given, options.engine) as (host, ground):
            return asyncio.run(_run(options, chosen, host, ground))
    except (EngineUnavailableError, CgroupsUnavailableError, ImageNotFoundError, OSError) as error:
        return _refuse(str(error))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return _refuse("stopped; everything that it made is removed", enclosure.STOPPED)


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
    parser.add_argument("--demonstrate", action="store_true", help="only show, side by side, what both sides see")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this attempt; may be repeated")
    # The executor's own, when it runs the suite for somebody else: results as they come, and a name to clean up by.
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--name", default=f"cv{os.getpid():07d}{uuid.uuid4().hex[:12]}", help=argparse.SUPPRESS)
    return parser


def _show(options: argparse.Namespace, looks: list[demonstrate.Look]) -> int:
    print(demonstrate.as_json(options.engine, looks) if options.json else demonstrate.table(options.engine, looks))  # noqa: T201
    return 0


def _refuse(why: str, code: int = _CANNOT) -> int:
    _note(why)
    return code


def _note(what: str) -> None:
    print(f"crucible verify: {what}", file=sys.stderr, flush=True)  # noqa: T201  # a command's output


@contextlib.contextmanager
def _ground(given: Settings, engine: str) -> Iterator[tuple[Host, Ground]]:
    """Folders, cgroups, a host name and, where the engine needs one, a Docker daemon of the suite's own.

    All of it is gone afterwards.
    """
    image = ImageStore(given.images_dir).resolve("python")
    name = given.cgroup
    namespaces.mount("crucible-verify", _SHARED_MEMORY, "tmpfs", namespaces.MS_NODEV, "mode=1777")
    namespaces.set_host_name(f"vh{uuid.uuid4().hex[:14]}")
    namespaces.bring_up_loopback()
    os.environ[EXECUTOR_SECRET] = f"cx-{uuid.uuid4().hex}"
    runs, bait = Path(_SHARED_MEMORY, name), Path(_SHARED_MEMORY, "bait")
    for folder in (runs, bait):
        folder.mkdir()
        folder.chmod(0o755)
    tree = cgroups.detect(name)
    tree.prepare()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(namespaces.unmount, _SHARED_MEMORY)
        cleanup.callback(tree.discard)
        place = namespaces.Place(os.getpid())
        cleanup.callback(place.close)
        host = Host(given.runsc, given.init_dir, given.images_dir, runs, name)
        ground = Ground(name, bait, runs, image.rootfs, lambda: [image.rootfs], tree, place)
        if engine in _OVER_DOCKER:
            daemon = cleanup.enter_context(private_dockerd.running(runs / "docker", given.runsc, f"{name}-docker"))
            host = dataclasses.replace(host, docker_host=daemon.address)
            ground = dataclasses.replace(ground, images=daemon.layers)
        else:
            host = dataclasses.replace(host, tracer=composition.tracer_of(_with_reader(given)))
        yield host, ground


def _with_reader(given: Settings) -> Settings:
    """The settings, with a user for the reader of traces that there is: before the first `crucible up`, another."""
    try:
        pwd.getpwnam(given.trace_user)
    except KeyError:
        _note(f"there is no user {given.trace_user} yet, so that the traces are read as {_OTHER_READER}")
        return dataclasses.replace(given, trace_user=_OTHER_READER)
    return given


async def _run(options: argparse.Namespace, chosen: list[Attempt], host: Host, ground: Ground) -> int:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a coroutine is always run by a task")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    engine = ENGINES[options.engine](host)
    try:
        await engine.check()
        if options.demonstrate:
            return _show(options, await demonstrate.run(engine, ground))
        return _publish(await _attack(options, chosen, engine, host, ground), options)
    finally:
        await to_the_end(_leave(engine, host))


async def _leave(engine: Engine, host: Host) -> None:
    await engine.sweep()
    await engine.close()
    await host.tracer.close()


async def _attack(
    options: argparse.Namespace, chosen: list[Attempt], engine: Engine, host: Host, ground: Ground
) -> report.Report:
    began = time.monotonic()
    progress = lines.Lines() if options.lines else _Progress(len(chosen) * (2 if options.controls else 1))
    if not any(ground.images()):
        raise EngineUnavailableError("The suite does not find where this Docker keeps its layers, so it cannot judge.")
    suite = Suite(engine, ground, MARGINS[options.engine], LESS[options.engine], host.tracer)
    findings = await suite.run(chosen, progress.finding)
    proved = await controls.run(chosen, ground, progress.control) if options.controls else []
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
