"""The judges: each says in words what it saw that must not be, or nothing. All look from outside the sandbox.

The program's output is looked at by two alone: `leaks`, for canaries made for this attempt, and `record`, for whether
what was kept is what was written. `trace` compares what the record says that the program tried with what it did; what
a trace does not say is never a reason for CONTAINED.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crucible_executor.behaviour import MAX_EXAMPLE_CHARACTERS, MAX_EXAMPLES, Behaviour, Observation
from crucible_executor.model import OUTPUT_KILL_FACTOR, Exited, Termination
from crucible_executor.verify.attempts.record import EXPECTED
from crucible_executor.verify.attempts.trace import FORGED, TRUTHS
from crucible_executor.verify.bait import HOLD_SECONDS, Bait
from crucible_executor.verify.model import BEGAN, RAN, Attempt
from crucible_executor.verify.watch import Watch

_MIB = 1 << 20
_UNTOLD = 1000
"""Messages. What a kernel drops it tells with the next that goes through, and each drop costs it 3 ms: so much can be
missed at the very end before the reader is ended as one that hangs. Allowed only beside what is told as dropped."""


@dataclass(frozen=True)
class Margins:
    """What an engine's own parts may take beside the program's limits: host tasks, bytes, descriptors."""

    tasks: int = 8
    memory_bytes: int = 24 * _MIB
    open_files: int = 32


@dataclass
class Scene:
    """All that is known of one attempt after its end.

    Attributes:
        secrets: by what they are: canaries of this attempt, the suite and its host.
        images: the trees that the roots of sandboxes are made of.
        kernel: `kernel_state` before.
        names: the host's names before.
        left: what belongs to it and was still there when it was said to have ended.
        seconds: from start to that.
        received: bytes taken of each stream.
        behaviour: what the record says that it tried; None where there is no trace.
    """

    attempt: Attempt
    bait: Bait
    watch: Watch
    secrets: dict[str, str]
    margins: Margins
    images: Sequence[Path]
    kernel: bytes
    names: tuple[str, str]
    termination: Termination | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    received: tuple[int, int] = (0, 0)
    behaviour: Behaviour | None = None
    seconds: float = 0.0
    left: int = 0


Judge = Callable[[Scene], list[str]]


def _calls(scene: Scene) -> list[str]:
    return sorted(set(scene.bait.heard()))[:4]


def _files(scene: Scene) -> list[str]:
    found = ["a canary file was opened"] if scene.bait.opened() else []
    after = scene.bait.files()
    changed = [name for name in {*after, *scene.bait.before} if after.get(name) != scene.bait.before.get(name)]
    return found + [f"{_plain(name)} of the bait was made, changed or removed" for name in sorted(changed)[:3]]


def _leaks(scene: Scene) -> list[str]:
    said = scene.stdout + scene.stderr
    return [f"its output holds {what}" for what, secret in scene.secrets.items() if secret.encode() in said]


def _packets(scene: Scene) -> list[str]:
    count = scene.bait.packets()
    return [f"{count} of its frames were on the host's network"] if count else []


def _mounts(scene: Scene) -> list[str]:
    return sorted(scene.watch.mounts)


def _names(scene: Scene) -> list[str]:
    return ["the host has another name"] if host_names(scene) != scene.names else []


def _sysctl(scene: Scene) -> list[str]:
    now = scene.bait.place.inside("net", lambda: Path("/proc/sys/net/ipv4/ip_default_ttl").read_text().strip())
    return ["net.ipv4.ip_default_ttl of the host is the attempt's"] if now == str(scene.bait.ttl) else []


def _ipc(scene: Scene) -> list[str]:
    def look() -> list[str]:
        key = str(scene.bait.ipc_key)
        kinds = ("shm", "sem", "msg")
        return [k for k in kinds if key in Path(f"/proc/sysvipc/{k}").read_text().split()]

    return [f"its {kind} key is on the host" for kind in scene.bait.place.inside("ipc", look)]


def _addresses(scene: Scene) -> list[str]:
    table = scene.bait.place.inside("net", lambda: Path("/proc/thread-self/net/fib_trie").read_text())
    return [f"the host's network has the address {scene.bait.new_address}"] if scene.bait.new_address in table else []


def _kernel(scene: Scene) -> list[str]:
    return ["the host's modules or its kernel's taint changed"] if kernel_state() != scene.kernel else []


def _victims(scene: Scene) -> list[str]:
    return sorted(scene.watch.harm)


def _descriptors(scene: Scene) -> list[str]:
    return [f"the sandbox held {_plain(what)}" for what in sorted(scene.watch.objects)[:4]]


def _privilege(scene: Scene) -> list[str]:
    return [f"a native process of the program had {what}" for what in sorted(scene.watch.privileges)]


def _priority(scene: Scene) -> list[str]:
    return sorted(scene.watch.priorities)[:2]


def _knob(scene: Scene) -> list[str]:
    found = ["a limit of its cgroup changed"] if scene.watch.knob_changed else []
    return found + [what for what in _files(scene) if "pids.max" in what]


def _gone(scene: Scene) -> list[str]:
    found = [f"{scene.left} processes are left"] if scene.left else []
    late = scene.seconds - scene.attempt.limits.wall_time.total_seconds()
    return found + ([f"it ended {late:.1f} s after its deadline"] if late > 3 else [])


def _tasks(scene: Scene) -> list[str]:
    most = scene.attempt.limits.processes + scene.margins.tasks
    return [f"{scene.watch.tasks} tasks, {most} allowed"] if scene.watch.tasks > most else []


def _memory(scene: Scene) -> list[str]:
    most = scene.attempt.limits.memory_bytes + scene.margins.memory_bytes
    peak = scene.watch.memory_bytes
    return [f"{peak >> 20} MiB in its cgroup, {most >> 20} allowed"] if peak > most else []


def _disk(scene: Scene) -> list[str]:
    # Three file systems of the limit's size, all in memory, and the interpreter.
    most = 3 * scene.attempt.limits.disk_bytes + 64 * _MIB + scene.margins.memory_bytes
    peak = scene.watch.memory_bytes
    return [f"{peak >> 20} MiB in its cgroup, {most >> 20} allowed for files"] if peak > most else []


def _inodes(scene: Scene) -> list[str]:
    made = sum(1 for _ in scene.bait.folder.iterdir()) - len(scene.bait.before)
    return [f"{made} inodes of the host were taken"] if made > 1000 else []


def _output(scene: Scene) -> list[str]:
    most = OUTPUT_KILL_FACTOR * scene.attempt.limits.output_bytes + 2 * _MIB
    return [f"{count} bytes of a stream were taken, {most} allowed" for count in scene.received if count > most]


def _open_files(scene: Scene) -> list[str]:
    most = scene.attempt.limits.open_files + scene.margins.open_files
    return [f"{scene.watch.open_files} open files, {most} allowed"] if scene.watch.open_files > most else []


def _cpu(scene: Scene) -> list[str]:
    most = scene.attempt.limits.cpus * scene.seconds * 1.3 + 0.25
    used = scene.watch.cpu_seconds
    return [f"{used:.2f} s of CPU, {most:.2f} allowed"] if used > most else []


def _cpu_time(scene: Scene) -> list[str]:
    limit = scene.attempt.limits.cpu_time
    most = 0.6 + (limit.total_seconds() if limit else 0.0)
    used = scene.watch.cpu_seconds
    return [f"{used:.2f} s of CPU, {most:.2f} allowed"] if used > most else []


def _end(scene: Scene) -> list[str]:
    if BEGAN + scene.bait.token.encode() not in scene.stderr or scene.termination == Exited(RAN):
        return []
    return [f"recorded as {_plain(str(scene.termination))}, and it exited with {RAN}"]


def _record(scene: Scene) -> list[str]:
    out, err = EXPECTED[scene.attempt.name]
    mark = BEGAN + scene.bait.token.encode()
    if mark not in scene.stderr and mark not in scene.stdout:
        return []
    found = [] if scene.stdout == out else [f"stdout: {len(out)} bytes written, {len(scene.stdout)} kept, not the same"]
    return found + ([] if scene.stderr == mark + err else ["stderr is not what was written"])


def _image(scene: Scene) -> list[str]:
    folders = ("", "etc", "usr", "usr/bin", "lib", "var", "root", "opt", "bin")
    name = scene.bait.root_name
    return [f"/{f} of the image has a new file" for f in folders if any((i / f / name).exists() for i in scene.images)]


def _trace(scene: Scene) -> list[str]:
    told, truth = scene.behaviour, TRUTHS[scene.attempt.name]
    if told is None:
        return []
    if told.observation is Observation.NOT_OBSERVED:
        return [f"its run was not observed: {_plain(told.reason)}"]
    said, kind = told.actions[truth.action].count, truth.action.value
    found = []
    missing = truth.count - said - told.dropped
    if said > truth.count or missing > (_UNTOLD if told.dropped else 0):
        found.append(f"the record says {said} {kind} and {told.dropped} dropped, the program did {truth.count}")
    if told.dropped and told.observation is not Observation.PARTIAL:
        found.append(f"{told.dropped} messages were dropped, and the record says {told.observation.value}")
    shown = [one for actions in told.actions.values() for one in actions.examples]
    found += ["the record holds what the program never did"] * any(FORGED in one for one in shown)
    if any(not one.isascii() or not one.isprintable() or len(one) > MAX_EXAMPLE_CHARACTERS for one in shown):
        found.append("the record holds what is not plain text")
    if any(len(actions.examples) > MAX_EXAMPLES for actions in told.actions.values()):
        found.append(f"the record holds more than {MAX_EXAMPLES} examples")
    return found


JUDGES: dict[str, Judge] = {
    "calls": _calls, "files": _files, "leaks": _leaks, "packets": _packets, "mounts": _mounts, "names": _names,
    "sysctl": _sysctl, "ipc": _ipc, "addresses": _addresses, "kernel": _kernel, "victims": _victims,
    "descriptors": _descriptors, "privilege": _privilege, "priority": _priority, "knob": _knob, "gone": _gone,
    "tasks": _tasks, "memory": _memory, "disk": _disk, "inodes": _inodes, "output": _output,
    "open_files": _open_files, "cpu": _cpu, "cpu_time": _cpu_time, "end": _end, "record": _record, "image": _image,
    "trace": _trace,
}  # fmt: skip

ALWAYS = ("calls", "files", "leaks", "packets", "mounts", "kernel", "victims")
"""Judges that look at every attempt, whatever it says it tries."""

_SAMPLED = frozenset({"descriptors", "privilege", "priority", "mounts", "open_files"})
"""Judges of what no counter of the kernel keeps: it has to be there when the watch looks."""

TRIES = 3
"""How often an attempt is run for such a judge, until the watch looked often enough; never because of what it saw."""


def missed(attempt: Attempt, watch: Watch) -> str:
    """Why these judges may have missed something, as where the machine was too busy; empty when they cannot have."""
    if watch.slowest <= HOLD_SECONDS or not _SAMPLED & set(attempt.judges):
        return ""
    return f"the host was too busy to look: {watch.slowest:.2f} s for two looks, {HOLD_SECONDS:g} s at most are needed"


def breaches(scene: Scene, names: tuple[str, ...]) -> list[str]:
    """What these judges saw, in words; empty when all is well."""
    return [what for name in dict.fromkeys(names) for what in JUDGES[name](scene)]


def kernel_state() -> bytes:
    """The host's modules, without their counters, and its kernel's taint."""
    modules = Path("/proc/modules")
    names = sorted(line.split()[0] for line in modules.read_text().splitlines()) if modules.exists() else []
    return (" ".join(names) + Path("/proc/sys/kernel/tainted").read_text()).encode()


def host_names(scene: Scene) -> tuple[str, str]:
    """Host and domain name of the attempt's place, now."""
    return place_names(scene.bait)


def place_names(bait: Bait) -> tuple[str, str]:
    """Host and domain name of the bait's place, now."""
    return bait.place.inside(
        "uts", lambda: (os.uname().nodename, Path("/proc/sys/kernel/domainname").read_text().strip())
    )


def _plain(text: str) -> str:
    """`text` without anything that a terminal or Markdown could take for its own."""
    return "".join(c if c.isalnum() or c in " ./:_-[]()=,'" else "?" for c in text)[:120]
