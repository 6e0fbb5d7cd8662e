"""What is told of a run while it goes on: the frames between the reader and the executor, and their bounds."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_executor.behaviour import (
    MAX_EXAMPLE_CHARACTERS,
    MAX_TOLD,
    MAX_UPDATES,
    Action,
    Behaviour,
    Observation,
    Update,
)
from crucible_executor.tracing import live, tally
from crucible_executor.tracing.live import Heard, MalformedFrameError, Telling
from crucible_executor.tracing.tally import Tally
from crucible_executor.tracing.trace import Trace
from crucible_executor.tracing.tracer import Tracer, TracerPaths
from tests.executor import trace_messages as tm

pytestmark = pytest.mark.slow

SINCE = datetime(2030, 1, 1, tzinfo=UTC)
UNTIL = SINCE + timedelta(minutes=1)
WRITE = 0o1101


class Run:
    """One run's messages through the reader's side and the executor's, a frame at a time."""

    def __init__(self) -> None:
        self.tally = Tally(now=SINCE.timestamp)
        self.heard = Heard()
        self.add(tm.HANDSHAKE, tm.execve())

    def add(self, *messages: bytes) -> Run:
        for one in messages:
            self.tally.add(memoryview(one))
        return self

    def told(self) -> list[Update]:
        updates = []
        while self.tally.telling.is_due:
            frame = self.tally.telling.frame()
            assert len(frame) <= live.MAX_FRAME
            self.tally.telling.sent()
            updates.append(self.heard.take(frame, SINCE, UNTIL))
        return updates


def examples(updates: list[Update]) -> list[tuple[Action, str, int]]:
    return [(one.action, one.example, one.count) for update in updates for one in update.sights]


def test_quiet_program_has_nothing_to_tell():
    run = Run().add(*[tm.opened(b"/usr/lib/os-release")] * 50, tm.opened(b"/dev/null", WRITE))
    assert run.told() == []


def test_first_sight_of_each_kind_and_example_is_told_with_the_count_until_then():
    run = Run().add(*[tm.opened(b"/etc/shadow")] * 3, tm.opened(b"/tmp/a", WRITE), tm.opened(b"/proc/1/mem"))
    [update] = run.told()
    assert (update.observation, update.reason, update.exhausted) == (Observation.OBSERVED, "", ())
    assert examples([update]) == [
        (Action.PROBES, "/etc/shadow", 1),
        (Action.FILES_WRITTEN, "/tmp/a", 1),
        (Action.PROBES, "/proc/1/mem", 4),
    ]
    assert {one.time for one in update.sights} == {SINCE}
    assert run.add(tm.opened(b"/etc/shadow")).told() == []


def test_flood_of_one_kind_exhausts_that_kind_alone_and_says_so_once():
    run = Run().add(*(tm.opened(b"/tmp/%d" % number, WRITE) for number in range(5000)))
    updates = run.told()
    assert len(examples(updates)) == MAX_TOLD
    assert [update.exhausted for update in updates if update.exhausted] == [(Action.FILES_WRITTEN,)]
    assert examples(run.add(tm.opened(b"/tmp/new", WRITE), tm.opened(b"/etc/shadow")).told()) == [
        (Action.PROBES, "/etc/shadow", 1)
    ]
    assert tally.behaviour(run.tally.report(), SINCE, UNTIL).actions[Action.FILES_WRITTEN].count == 5001


def test_worst_program_is_told_in_bounds():
    """Every kind at once, all different, with examples whose every character has to be escaped."""
    telling, heard = Telling(), Heard()
    for number in range(MAX_TOLD + 5):
        for action in Action:
            example = f"{number:03}" + "\\" * (MAX_EXAMPLE_CHARACTERS - 3)
            telling.saw(action, example, 1 << 53, lambda: 4_000_000_000.123456)
    updates = []
    while telling.is_due:
        assert len(telling.frame()) <= live.MAX_FRAME
        updates.append(heard.take(telling.frame(), SINCE, UNTIL))
        telling.sent()
    assert len(examples(updates)) == len(Action) * MAX_TOLD
    assert set(updates[-1].exhausted) == set(Action)
    assert live.MAX_FRAMES + 2 <= MAX_UPDATES


def test_missing_messages_are_told_once_and_from_then_on_with_every_update():
    run = Run().add(tm.opened(b"/etc/shadow"), b"\xff\xff")
    [first] = run.told()
    assert (first.observation, "1 message(s)" in first.reason) == (Observation.PARTIAL, True)
    assert run.add(b"\xff\xff").told() == []
    [second] = run.add(tm.opened(b"/etc/gshadow")).told()
    assert (second.observation, "2 message(s)" in second.reason) == (Observation.PARTIAL, True)


def numbered(number: int) -> bytes:
    return tm.message(tm.RAW, tm.field(4, number))


def test_call_whose_names_are_on_their_way_is_not_missing_and_one_whose_never_come_is():
    run = Run()
    for _ in range(3):
        run.add(numbered(257))
        assert run.tally.is_due
        run.tally.watch()
        run.add(tm.opened(b"/usr/lib/os-release"), numbered(257))
        run.tally.settle()
        assert run.told() == []
        run.add(tm.opened(b"/usr/lib/os-release"))
    assert not run.tally.is_due
    run.add(numbered(257))
    run.tally.watch()
    run.add(numbered(257), tm.opened(b"/usr/lib/os-release"))
    run.tally.settle()
    [update] = run.told()
    assert (update.observation, "dropped 1 message" in update.reason) == (Observation.PARTIAL, True)
    assert not run.tally.is_due


def test_terminal_escapes_in_a_path_are_told_escaped():
    [update] = Run().add(tm.opened(b"/tmp/\x1b[2J\x07\xc2\x9b", WRITE)).told()
    assert examples([update]) == [(Action.FILES_WRITTEN, r"/tmp/\x1b[2J\x07\x9b", 1)]


def frame(seen: object = (), exhausted: object = (), missing: object = (0, 0), **more: object) -> bytes:
    return json.dumps({"seen": seen, "exhausted": exhausted, "missing": missing, **more}).encode()


GOOD = ["probes", "/etc/shadow", 1, SINCE.timestamp()]


@pytest.mark.parametrize(
    "lie",
    [
        b"", b"null", b"[]", b"{", b"NaN", b"\xff\xfe", b"[" * 20_000, b'{"seen":' * 5_000, b" " * (live.MAX_FRAME + 1),
        b"9" * 10_000,
        frame(),  # tells nothing
        frame("abc"), frame({"a": 1}), frame([1]), frame([GOOD[:3]]), frame([[*GOOD, 1]]),
        frame([GOOD] * (live.MAX_SIGHTS + 1)),
        frame([GOOD] * (MAX_TOLD + 1)),
        frame([["unknown", *GOOD[1:]]]), frame([[[], *GOOD[1:]]]),
        frame([["probes", "a" * (MAX_EXAMPLE_CHARACTERS + 1), 1, 1.0]]),
        frame([["probes", "\x1b[2J", 1, 1.0]]), frame([["probes", "ü", 1, 1.0]]), frame([["probes", 7, 1, 1.0]]),
        frame([["probes", "a", -1, 1.0]]), frame([["probes", "a", True, 1.0]]), frame([["probes", "a", 1 << 60, 1.0]]),
        frame([["probes", "a", 1, float("nan")]]), frame([["probes", "a", 1, float("inf")]]),
        frame([["probes", "a", 1, 1e300]]), frame([["probes", "a", 1, "x"]]), frame([["probes", "a", 1, None]]),
        frame([], ["probes", "probes"]), frame([], "probes"), frame([], [3]),
        frame([GOOD], missing=[0]), frame([GOOD], missing=[-1, 0]), frame([GOOD], missing=None),
    ],
)  # fmt: skip
def test_frame_that_no_reader_in_order_would_send_is_refused(lie: bytes):
    with pytest.raises(MalformedFrameError):
        Heard().take(lie, SINCE, UNTIL)


def test_nothing_comes_of_a_kind_that_was_exhausted_and_what_was_missing_stays_missing():
    heard = Heard()
    heard.take(frame([GOOD], ["probes"], [1, 0]), SINCE, UNTIL)
    for lie in (frame([GOOD], [], [1, 0]), frame([], ["probes"], [1, 0]), frame([["sockets", "a", 1, 1.0]])):
        with pytest.raises(MalformedFrameError):
            heard.take(lie, SINCE, UNTIL)


def test_times_outside_the_run_are_moved_into_it():
    for said, expected in ((0, SINCE), (-1e9, SINCE), (4e9, UNTIL), (SINCE.timestamp() + 1, SINCE + timedelta(0, 1))):
        update = Heard().take(frame([["probes", "a", 1, said]]), SINCE, UNTIL)
        assert update.sights[0].time == expected


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_kind = st.sampled_from([action.value for action in Action])
_sight = st.tuples(_kind, st.text(max_size=9), st.integers(-1, 9), st.floats() | st.integers()) | _json
_frame = st.builds(
    lambda seen, exhausted, missing: frame(seen, exhausted, missing),
    st.lists(_sight, max_size=6) | _json,
    st.lists(_kind, max_size=3) | _json,
    st.tuples(st.integers(-1, 5), st.integers(-1, 5)) | _json,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_frame | st.binary(max_size=200), max_size=30))
def test_reader_that_was_taken_over_cannot_tell_more_than_the_budget(frames: list[bytes]):
    heard = Heard()
    updates = []
    for one in frames:
        try:
            updates.append(heard.take(one, SINCE, UNTIL))
        except MalformedFrameError:
            break  # its run is not observed from here on
    for update in updates:
        assert update.sights or update.exhausted or update.reason
        assert all(live.is_shown(one.example) and SINCE <= one.time <= UNTIL for one in update.sights)
    told = [one.action for update in updates for one in update.sights]
    assert all(told.count(action) <= MAX_TOLD for action in Action)
    assert len({id(one) for one in updates}) <= live.MAX_FRAMES


_messages = st.lists(
    st.binary(max_size=60)
    | st.builds(lambda path, flags: tm.opened(path, flags), st.binary(max_size=300), st.integers(0, 0o7777))
    | st.builds(lambda path, dropped: tm.execve(path, dropped=dropped), st.binary(max_size=60), st.integers(0, 9)),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(_messages)
def test_whatever_a_kernel_sends_the_reader_tells_what_the_executor_takes(messages: list[bytes]):
    run = Run().add(*messages)
    updates = run.told()
    counts = tally.behaviour(run.tally.report(), SINCE, UNTIL).actions
    for action in Action:
        assert len({example for kind, example, _ in examples(updates) if kind is action}) <= counts[action].count
    assert len(updates) <= live.MAX_FRAMES


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.builds(lambda tail: b"\x01" + bytes(7) + tail, _frame), max_size=25))
def test_executor_survives_every_datagram_of_its_reader_and_is_told_no_more_than_the_budget(said: list[bytes]):
    asyncio.run(_said_by_the_reader(said))


async def _said_by_the_reader(said: list[bytes]) -> None:
    """A tracer whose reader is this test."""
    told: list[Update] = []
    trace, tracer = Trace(), Tracer(TracerPaths(Path("/nowhere"), "nobody"), cgroups=None)
    trace.connected()
    trace.begin(told.append)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    tracer._control, tracer._traces, tracer._may_say = ours, {1: trace}, 10
    with theirs:
        for one in said:
            theirs.send(one)
    for _ in range(len(said) + 1):
        if tracer._control is not None:
            tracer._heard(ours)
    assert tracer._control is None  # it hung up, or said too much
    assert trace.has_ended
    assert sum(len(one.sights) for one in told) <= 10 * live.MAX_SIGHTS
    assert [one.observation for one in told].count(Observation.NOT_OBSERVED) <= 1
    trace.close()


# What a run's sink hears.


async def test_updates_of_before_the_run_are_told_when_it_begins():
    trace, told = Trace(), []
    trace.connected()
    trace.tells(frame([GOOD]))
    trace.begin(told.append)
    trace.tells(frame([["sockets", "AF_INET", 1, 1.0]]))
    assert [one.sights[0].example for one in told] == ["/etc/shadow", "AF_INET"]


async def test_end_of_the_observation_is_told_at_once_and_nothing_after_it():
    trace, told = Trace(), []
    trace.connected()
    trace.begin(told.append)
    trace.tells(frame([GOOD]))
    trace.end(Behaviour.not_observed("the reader of the trace died during the run"))
    trace.tells(frame([["sockets", "AF_INET", 1, 1.0]]))
    await trace.behaviour()
    assert [one.observation for one in told] == [Observation.OBSERVED, Observation.NOT_OBSERVED]
    assert told[-1].reason == "the reader of the trace died during the run"


async def test_malformed_frame_ends_the_observation():
    trace, told = Trace(), []
    trace.connected()
    trace.begin(told.append)
    trace.tells(b"junk")
    assert [one.observation for one in told] == [Observation.NOT_OBSERVED]
    assert (await trace.behaviour()).observation is Observation.NOT_OBSERVED


@pytest.mark.parametrize("when", ["before", "after"])
async def test_run_without_a_trace_is_told_so(when: str):
    told: list[Update] = []
    trace = Trace.none("tracing is not available") if when == "before" else Trace()
    trace.begin(told.append)
    trace.expected()
    assert [one.observation for one in told] == [Observation.NOT_OBSERVED]


async def test_what_is_missing_at_the_very_end_is_told():
    trace, told = Trace(), []
    trace.connected()
    trace.begin(told.append)
    run = Run()
    run.add(b"\xff\xff")
    trace.end(run.tally.report())
    assert (await asyncio.wait_for(trace.behaviour(), 5)).observation is Observation.PARTIAL
    assert [one.observation for one in told] == [Observation.PARTIAL]
