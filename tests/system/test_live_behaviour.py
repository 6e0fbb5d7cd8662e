"""What a program tries reaches those who watch it while it runs, through the whole stack."""

import asyncio
import json
import os
import signal
from contextlib import aclosing
from pathlib import Path

from crucible_client import ActionKind, BehaviourSeen, Exited, State
from crucible_client.results import Observation, StateChanged
from tests.system.local import python

HOSTILE = """
import socket, sys, time
open('/tmp/\\x1b[2J', 'w').close()
try:
    open('/etc/shadow')
except OSError:
    pass
try:
    socket.create_connection(('10.9.8.7', 80))
except OSError:
    pass
time.sleep(60)
"""
TRIED = {
    (ActionKind.FILES_WRITTEN, r"/tmp/\x1b[2J"),
    (ActionKind.PROBES, "/etc/shadow"),
    (ActionKind.CONNECTIONS, "10.9.8.7:80"),
}


async def watched(client, name, done):
    """The events of an evaluation until `done` says that they are enough."""
    events = []
    async with asyncio.timeout(40), aclosing(client.watch(name)) as stream:
        async for event in stream:
            events.append(event)
            if done(events):
                return events
    raise AssertionError(f"the evaluation ended first: {events}")


def tried(events):
    return {
        (action.kind, action.example)
        for event in events
        if isinstance(event, BehaviourSeen)
        for action in event.actions
    }


async def test_watcher_sees_what_a_program_tries_before_it_ends(stack, client):
    submitted = await client.submit(python(HOSTILE))
    try:
        events = await watched(client, submitted.name, lambda events: tried(events) >= TRIED)
        assert (await client.get(submitted.name)).state is State.RUNNING
        assert [event.state for event in events if isinstance(event, StateChanged)][-1] is State.RUNNING
    finally:
        await client.cancel(submitted.name)
    ended = await client.wait(submitted.name)
    shown = stack.crucible("watch", submitted.name).stdout
    assert "\x1b" not in shown
    assert r"files opened to write at " in shown
    updates = [json.loads(line) for line in stack.crucible("watch", "--json", submitted.name).stdout.splitlines()]
    numbers = [update["sequence"] for update in updates if update["kind"] == "BEHAVIOUR"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= 4
    assert "/etc/shadow" in ended.behaviour.probes.examples


async def test_quiet_program_adds_nothing_to_the_event_log(client):
    done = await client.run(python("print(1)"))
    kinds = [type(event).__name__ async for event in client.watch(done.name)]
    assert kinds == ["StateChanged"] * 3 + ["OutputChunk", "StateChanged"]


async def test_watcher_sees_that_a_run_is_not_observed_any_more(stack, client):
    program = "open('/tmp/up', 'w').close()\nimport time\ntime.sleep(60)"
    submitted = await client.submit(python(program))
    try:
        await watched(client, submitted.name, lambda events: tried(events))
        os.kill(reader_of(stack), signal.SIGKILL)
        events = await watched(
            client, submitted.name, lambda events: getattr(events[-1], "observation", None) is Observation.NOT_OBSERVED
        )
        assert "died" in events[-1].reason
        assert (await client.get(submitted.name)).state is State.RUNNING
    finally:
        await client.cancel(submitted.name)
    await client.wait(submitted.name)
    again = await client.run(python(program.replace("60", "0")))
    assert again.termination == Exited(0, evidence=again.termination.evidence)
    assert again.behaviour.observation is Observation.OBSERVED


async def test_update_is_in_the_log_once_although_its_worker_was_killed(stack, client):
    submitted = await client.submit(python(HOSTILE))
    try:
        await watched(client, submitted.name, lambda events: tried(events) >= TRIED)
        stack.kill("worker")
        await client.cancel(submitted.name)
        await client.wait(submitted.name)
        events = [event async for event in client.watch(submitted.name)]
    finally:
        await client.cancel(submitted.name)
    numbers = [event.sequence for event in events if isinstance(event, BehaviourSeen)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len({event.attempt for event in events if isinstance(event, BehaviourSeen)}) == 1


def reader_of(stack) -> int:
    """The process that reads this stack's traces: a child of its executor."""
    executor = stack.processes()["executor"].pid
    for child in Path(f"/proc/{executor}/task").glob("*/children"):
        for pid in child.read_text().split():
            if b"crucible_executor.tracing.reader" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise AssertionError("the executor has no reader of traces")
