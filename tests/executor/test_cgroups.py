"""Cgroups: on this machine's own version for real, on v2 files by what is read and written."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from crucible_executor import cgroups
from crucible_executor.cgroups import Bounds, CgroupsUnavailableError, CgroupTree, CgroupTreeV1, CgroupTreeV2
from crucible_executor.cgroups.oom import EventsWatch

BOUNDS = Bounds(memory_bytes=64 << 20, tasks=20)


@pytest.fixture
def tree() -> Iterator[CgroupTree]:
    made = cgroups.detect(f"crucible-test-{uuid.uuid4().hex[:12]}")
    made.prepare()
    yield made
    made.discard()


def in_cgroup(group: cgroups.Cgroup, *command: str) -> subprocess.Popen[bytes]:
    joins = " && ".join(f"echo 0 > {file}" for file in group.procs_files)
    return subprocess.Popen(["/bin/sh", "-c", f'{joins} && exec "$@"', "sh", *command], stdout=subprocess.DEVNULL)


@pytest.mark.root
async def test_kill_ends_a_forking_tree_and_remove_leaves_nothing(tree: CgroupTree):
    group = tree.create("one", BOUNDS)
    process = in_cgroup(group, "/bin/sh", "-c", "while true; do setsid sleep 30 & sleep 0.01; done")
    while len(group.pids()) < 5:  # noqa: ASYNC110  # the kernel tells nobody
        await asyncio.sleep(0.01)
    await group.kill()
    assert group.pids() == []
    assert process.wait(5) == -9
    await group.remove()
    await group.remove()
    assert tree.existing() == []
    assert not any(file.parent.exists() for file in group.procs_files)


@pytest.mark.root
async def test_memory_limit_leaves_its_evidence(tree: CgroupTree):
    group = tree.create("one", BOUNDS)
    process = in_cgroup(group, "/usr/bin/python3", "-c", "x = b'x' * 200_000_000")
    assert process.wait(20) == -9
    assert group.oom_kills() >= 1
    peak = group.peak_memory_bytes()
    assert peak is None or 32 << 20 < peak <= 64 << 20
    await group.remove()


HUNGRY = ("/usr/bin/python3", "-c", "x = b'x' * 200_000_000")
MODEST = ("/usr/bin/python3", "-c", "pass")


@pytest.mark.root
@pytest.mark.parametrize(("command", "code", "ran_out"), [(HUNGRY, -9, True), (MODEST, 0, False)])
@pytest.mark.parametrize("removed", [True, False])
async def test_memory_that_ran_out_is_known_also_when_the_cgroup_is_gone(
    tree: CgroupTree, command: tuple[str, ...], code: int, ran_out: bool, removed: bool
):
    for number in range(5):
        group = tree.create(f"n{number}", BOUNDS)
        watch = group.watch_oom()
        assert in_cgroup(group, *command).wait(20) == code  # nothing here looks meanwhile: the event loop stands still
        if removed:
            for folder in group.folders:
                folder.rmdir()
        assert [await watch.struck(), await watch.struck()] == [ran_out, ran_out]
        watch.close()
        watch.close()
        await group.remove()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.root
@pytest.mark.alone  # files that the tests before it left may be closed meanwhile
async def test_watches_leave_no_descriptor(tree: CgroupTree):
    before = descriptors()
    for number in range(20):
        group = tree.create(f"n{number}", BOUNDS)
        watch = group.watch_oom()
        await group.remove()
        assert not await watch.struck()
        watch.close()
    assert descriptors() == before


@pytest.mark.root
async def test_cgroup_that_is_gone_cannot_be_watched(tree: CgroupTree):
    group = tree.create("one", BOUNDS)
    await group.remove()
    with pytest.raises(OSError):
        group.watch_oom()


@pytest.mark.root
async def test_changes_of_an_events_file_are_seen_before_its_cgroup_goes(tree: CgroupTree):
    """The file of v2 that exists on a hybrid machine too stands for `memory.events`: the kernel tells of both alike."""
    group = tree.create("one", BOUNDS)
    events = [file for folder in group.folders if (file := folder / "cgroup.events").exists()]
    if not events or not group.can_freeze:
        pytest.skip("no cgroup v2 is mounted here")
    seen, quiet = EventsWatch(events[0], keys=("frozen",)), EventsWatch(events[0], keys=("nothing",))
    group.freeze()
    async with asyncio.timeout(10):
        while not seen._struck:  # noqa: ASYNC110  # by the event loop's own waiting, not by asking
            await asyncio.sleep(0.01)
    group.thaw()
    await group.remove()
    assert (await seen.struck(), await quiet.struck()) == (True, False)
    seen.close()
    quiet.close()


@pytest.mark.root
async def test_tasks_and_cpu_time_are_bounded_and_counted(tree: CgroupTree):
    group = tree.create("one", BOUNDS)
    group.limit_cpus(0.2)
    code = (
        "import os, time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\n"
        "try:\n    for _ in range(40):\n        if os.fork() == 0: time.sleep(5); os._exit(0)\n"
        "except OSError: os._exit(7)"
    )
    process = in_cgroup(group, "/usr/bin/python3", "-c", code)
    assert process.wait(20) == 7
    assert group.refused_tasks() >= 1
    assert timedelta(seconds=0.05) < group.cpu_time() < timedelta(seconds=0.6)
    await group.kill()
    await group.remove()


@pytest.mark.root
async def test_kill_does_not_wait_for_the_cpu_time_that_the_bound_allows(tree: CgroupTree):
    """To free this much memory takes a large part of a second, and the cgroup has a hundredth of each."""
    group = tree.create("one", Bounds(memory_bytes=1 << 30, tasks=200))
    code = (
        "import os, time\nhog = bytearray(300_000_000)\nfor at in range(0, len(hog), 4096): hog[at] = 1\n"
        "for _ in range(120):\n    if os.fork() == 0: time.sleep(60)\n"
        "time.sleep(60)"
    )
    process = in_cgroup(group, "/usr/bin/python3", "-c", code)
    while len(group.pids()) < 121:  # noqa: ASYNC110  # the kernel tells nobody
        await asyncio.sleep(0.01)
    group.limit_cpus(0.01)
    try:
        await group.kill()  # without lifting the bound: ProcessesLeftError after 10 s
    finally:
        group.limit_cpus(1)
        assert await asyncio.to_thread(process.wait, 20) == -9
        await group.kill()
        await group.remove()


@pytest.mark.root
async def test_cgroup_that_exists_already_is_an_error_and_stays(tree: CgroupTree):
    group = tree.create("one", BOUNDS)
    with pytest.raises(CgroupsUnavailableError):
        tree.create("one", BOUNDS)
    assert [one.name for one in tree.existing()] == ["one"]
    await group.remove()


def files(folder: Path, **contents: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    files(tmp_path, cgroup__controllers="cpuset cpu io memory pids\n", cgroup__subtree_control="memory\n")
    files(tmp_path / "mine", cgroup__subtree_control="")
    return tmp_path


def test_v2_enables_only_what_is_missing(v2: Path):
    CgroupTreeV2(v2, "mine").prepare()
    assert (v2 / "cgroup.subtree_control").read_text() == "+cpu +pids"
    assert (v2 / "mine/cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_v2_bounds_and_counters(v2: Path, monkeypatch: pytest.MonkeyPatch):
    folder = v2 / "mine" / "one"
    make = Path.mkdir

    def kernel_mkdir(self: Path, *args: object, **kwargs: object) -> None:
        make(self)
        names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cgroup.kill")
        for name in names:
            (self / name).write_text("")

    monkeypatch.setattr(Path, "mkdir", kernel_mkdir)
    group = CgroupTreeV2(v2, "mine").create("one", BOUNDS)
    monkeypatch.undo()
    group.limit_cpus(1.5)
    read = {
        name: (folder / name).read_text()
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    }
    assert read == {
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "20",
        "cpu.max": "150000 100000",
    }
    files(
        folder,
        memory__events="low 0\noom 2\noom_kill 3\n",
        pids__events="max 4\n",
        memory__peak="123\n",
        cpu__stat="usage_usec 2500000\n",
    )
    files(folder, cgroup__procs="11\n12\n")
    assert (group.oom_kills(), group.refused_tasks(), group.peak_memory_bytes(), group.pids()) == (3, 4, 123, [11, 12])
    assert group.cpu_time() == timedelta(seconds=2.5)
    assert group.procs_files == (folder / "cgroup.procs",)


async def test_v2_kill_asks_the_kernel_and_says_when_processes_stay(v2: Path):
    folder = v2 / "mine" / "one"
    files(folder, cgroup__procs="11\n", cgroup__kill="", cpu__max="500 100000")
    (group,) = CgroupTreeV2(v2, "mine").existing()
    with pytest.raises(cgroups.ProcessesLeftError, match="11"):
        await group.kill(timedelta(seconds=0.05))
    assert (folder / "cgroup.kill").read_text() == "1"
    assert (folder / "cpu.max").read_text() == "max 100000"


@pytest.mark.root
async def test_frozen_processes_stop_go_on_and_can_be_killed(tree: CgroupTree):
    group = tree.create("one", BOUNDS)
    process = in_cgroup(group, "/bin/sh", "-c", "while true; do true; done")
    try:
        await until(lambda: group.cpu_time() > timedelta(seconds=0.02))
        group.freeze()
        await until(group.frozen)
        used = group.cpu_time()
        await asyncio.sleep(0.1)
        assert group.cpu_time() == used
        group.thaw()
        await until(lambda: group.cpu_time() > used)
        group.freeze()
        await until(group.frozen)
    finally:
        await group.kill(timedelta(seconds=3))
        assert await asyncio.to_thread(process.wait, 5) == -9
        await group.remove()
    group.thaw()


@pytest.mark.root
async def test_bounds_can_be_raised_and_lowered_but_not_below_what_is_used(tree: CgroupTree):
    group = tree.create("one", BOUNDS)
    code = "x = b'x' * 40_000_000\nopen('/proc/self/comm', 'w').write('ready')\nimport time; time.sleep(60)"
    process = in_cgroup(group, "/usr/bin/python3", "-c", code)
    try:
        await until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "ready\n")
        assert group.memory_bytes() > 40_000_000
        for memory_bytes in (1 << 30, 256 << 20, 512 << 20):
            group.bound(Bounds(memory_bytes, 30))
    finally:
        await group.kill()
        assert await asyncio.to_thread(process.wait, 5) == -9
        await group.remove()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the kernel tells nobody
            await asyncio.sleep(0.005)


def mountinfo(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


V1_LINES = [
    f"3{index} 25 0:2{index} / /sys/fs/cgroup/{folder} rw,relatime shared:{index} - cgroup cgroup rw,{options}"
    for index, (folder, options) in enumerate((("memory", "memory"), ("cpu,cpuacct", "cpu,cpuacct"), ("pids", "pids")))
]
V2_LINE = "40 25 0:40 / {at} rw,nosuid - cgroup2 cgroup2 rw"


def test_hybrid_machine_is_used_as_v1(tmp_path: Path):
    found = cgroups.detect("x", mountinfo(tmp_path, *V1_LINES, V2_LINE.format(at="/sys/fs/cgroup/unified")))
    assert isinstance(found, CgroupTreeV1)
    assert Path("/sys/fs/cgroup/unified/x") in found.folders  # there, frozen processes can be killed


def test_unified_machine_is_used_as_v2(tmp_path: Path, v2: Path):
    assert isinstance(cgroups.detect("x", mountinfo(tmp_path, V2_LINE.format(at=v2))), CgroupTreeV2)


def test_missing_controllers_are_named(tmp_path: Path):
    with pytest.raises(CgroupsUnavailableError, match="pids"):
        cgroups.detect("x", mountinfo(tmp_path, *V1_LINES[:2]))
    files(tmp_path / "v2", cgroup__controllers="cpu pids\n")
    with pytest.raises(CgroupsUnavailableError, match="memory"):
        cgroups.detect("x", mountinfo(tmp_path, V2_LINE.format(at=tmp_path / "v2")))
    with pytest.raises(CgroupsUnavailableError, match="mount cgroup2"):
        cgroups.detect("x", mountinfo(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may make cgroups")
def test_without_root_the_message_says_so():
    with pytest.raises(CgroupsUnavailableError, match="root"):
        cgroups.detect("crucible-test").prepare()
