"""How a start can fail, and what a killed supervisor leaves: one clear line, and nothing."""

import os
import socket
import subprocess
from contextlib import contextmanager

import pytest

from crucible_deploy import host, record
from tests.system.local import LocalStack, python, until


@pytest.fixture
def local(stack):
    made = LocalStack(like=stack)
    try:
        yield made
    finally:
        made.crucible("down")
        made.remove()


@contextmanager
def mounted(path, options: str):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "crucible-test", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def refused(stack: LocalStack) -> str:
    """What a start that fails says; nothing may be left of it."""
    done = stack.crucible("up", "--detach")
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert record.read(stack.layout) is None
    assert not host.traces(stack.layout)
    return done.stderr


async def test_failed_starts_say_why_and_the_next_one_works(local):
    taken = int(local.layout.address("monitor").rpartition(":")[2])
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", taken))
        holder.listen()
        assert f"cannot listen on 127.0.0.1:{taken}: Address already in use" in refused(local)
    # Made by a start that fails at its last process, after the others came up.
    interpreter = local.layout.environment("gateway") / "bin" / "python"
    local.up()
    local.down()
    interpreter.rename(interpreter.with_name("away"))
    assert "gateway did not start: ended with exit code" in refused(local)
    interpreter.with_name("away").rename(interpreter)
    state = local.layout.state("storage")
    owner = f"uid={state.stat().st_uid},gid={state.stat().st_gid},mode=0700"
    with mounted(state, f"{owner},ro"):
        said = refused(local)
        assert "storage did not start" in said
        assert "ead-only" in said or "readonly" in said, said
    with mounted(state, f"{owner},size=16k"):
        said = refused(local)
        assert "storage did not start" in said
        assert "full" in said or "No space" in said, said
    local.up()
    async with local.client() as client:
        assert (await client.run(python("print(1)"))).attempt == 1


async def test_nothing_outlives_a_killed_supervisor_and_the_next_start_works(local):
    local.up()
    async with local.client() as client:
        running = await client.submit(python("print('up', flush=True)\nimport time; time.sleep(60)"))
        async for event in client.watch(running.name):
            if type(event).__name__ == "OutputChunk":
                break
    found = record.read(local.layout)
    os.kill(found.supervisor.pid, 9)
    until(lambda: not any(process.alive for process in found.processes.values()), 30, "the end of all processes")
    left = host.wait_for_none(local.layout, 5)
    assert not left, str(left)
    local.up()
    assert set(local.processes().values()).isdisjoint(found.processes.values())


def test_down_without_up_says_so(local):
    done = local.crucible("down")
    assert done.returncode == 0
    assert "is not running" in done.stdout
