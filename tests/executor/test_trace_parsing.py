"""What the reader of traces makes of what a kernel sends it, also of one that hostile code has taken over."""

from __future__ import annotations

import json
import socket
import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_executor.behaviour import MAX_EXAMPLE_CHARACTERS, MAX_EXAMPLES, Action, Behaviour, Observation
from crucible_executor.tracing import tally, wire
from crucible_executor.tracing.tally import MAX_REPORT, Tally
from tests.executor import trace_messages as tm

pytestmark = pytest.mark.slow

SINCE = datetime(2030, 1, 1, tzinfo=UTC)
UNTIL = SINCE + timedelta(minutes=1)
WRITE = 0o1101


def seen(*messages: bytes, greeted: bool = True) -> Behaviour:
    counted = Tally(now=SINCE.timestamp)
    for one in ((tm.HANDSHAKE,) if greeted else ()) + messages:
        counted.add(memoryview(one))
    report = counted.report()
    assert len(report) <= MAX_REPORT
    return tally.behaviour(report, SINCE, UNTIL)


def after_start(*messages: bytes) -> Behaviour:
    return seen(tm.execve(), *messages)


def test_what_init_does_and_the_programs_own_start_are_not_the_programs():
    setuid = tm.message(tm.RAW, tm.field(4, 105), tm.field(5, 65534))
    by_init = tm.message(tm.RAW, tm.field(4, 105), process=tm.INIT)
    told = seen(setuid, by_init, tm.opened(b"/etc/shadow", process=tm.INIT), tm.execve(), by_init)
    assert told.observation is Observation.OBSERVED
    assert {kind.count for kind in told.actions.values()} == {0}
    assert {kind.first for kind in told.actions.values()} == {None}


def test_each_kind_of_action_is_counted_with_its_first_time_and_an_example():
    address = struct.pack("<H", socket.AF_INET) + struct.pack("!H", 80) + bytes([10, 0, 0, 1]) + bytes(8)
    told = after_start(
        tm.execve(b"/bin/sh", b"-c", b"id"),
        tm.opened(b"out.txt", WRITE),
        tm.opened(b"../etc//shadow"),
        tm.message(tm.SOCKET, tm.field(4, socket.AF_INET), tm.field(5, socket.SOCK_RAW | socket.SOCK_CLOEXEC)),
        tm.message(tm.CONNECT, tm.field(6, address)),
        tm.message(tm.CLONE, tm.field(3, 7), tm.field(4, 7)),
        tm.message(tm.CLONE, tm.field(3, 8), tm.field(4, 7)),  # a thread
        tm.message(tm.RAW, tm.field(4, 165), tm.field(5, 0x7FFF_0000_0000)),
    )
    assert {action: (kind.count, kind.examples) for action, kind in told.actions.items()} == {
        Action.PROGRAMS: (1, ("/bin/sh -c id",)),
        Action.FILES_WRITTEN: (1, ("/workspace/out.txt",)),
        Action.PROBES: (1, ("/etc/shadow",)),
        Action.SOCKETS: (1, ("AF_INET SOCK_RAW",)),
        Action.CONNECTIONS: (1, ("10.0.0.1:80",)),
        Action.PROCESSES: (1, ("process 7",)),
        Action.PRIVILEGE: (2, ("raw socket AF_INET SOCK_RAW", "mount")),
    }
    assert {kind.first for kind in told.actions.values()} == {SINCE}


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "/proc/1/environ", "/proc/1", "/proc/kcore", "/proc/self/root/etc", "/sys/kernel/security", "/sys",
     "/var/run/docker.sock", "/run/containerd/containerd.sock", "/root/.ssh/id_rsa", "/home/a/.aws/credentials",
     "/dev/sda1", "/dev/kmsg", "/proc/sys/kernel/core_pattern", "/x/../proc/./1/mem"],
)  # fmt: skip
def test_secrets_and_internals_are_probes(path: str):
    assert after_start(tm.opened(path.encode())).actions[Action.PROBES].count == 1


@pytest.mark.parametrize(
    "path",
    ["/workspace/sys/a", "/proc/12/stat", "/proc/self/stat", "/proc/cpuinfo", "/sys/devices/system/cpu/online",
     "/etc/passwd", "/dev/null", "/system", "/rooted", "/proc/sys/vm/overcommit_memory"],
)  # fmt: skip
def test_ordinary_files_are_no_probes(path: str):
    assert after_start(tm.opened(path.encode())).actions[Action.PROBES].count == 0


def test_what_every_interpreter_does_is_not_counted_as_written():
    bytecode = b"/usr/lib/python3.11/json/__pycache__/__init__.cpython-311.pyc.1234"
    told = after_start(*(tm.opened(path, WRITE) for path in (b"/dev/null", b"/dev/tty", bytecode)))
    assert told.actions[Action.FILES_WRITTEN].count == 0


def test_local_addresses_are_shown_and_a_socket_of_a_runtime_is_a_probe():
    def target(path: bytes) -> bytes:
        return tm.message(tm.CONNECT, tm.field(6, struct.pack("<H", socket.AF_UNIX) + path))

    told = after_start(target(b"/var/run/docker.sock\0"), target(b"\0hidden"), target(b"/var/run/nscd/socket\0"))
    assert told.actions[Action.CONNECTIONS].examples == ("unix:/var/run/docker.sock", "unix:@hidden")
    assert told.actions[Action.PROBES].examples == ("/var/run/docker.sock",)


def test_examples_are_escaped_bounded_and_all_different():
    hostile = b"/tmp/\x1b[2J\n\xff\xe2\x80\xae" + b"a" * 4000
    told = after_start(*[tm.opened(hostile, WRITE)] * 3, *(tm.opened(b"/tmp/%d" % n, WRITE) for n in range(100)))
    written = told.actions[Action.FILES_WRITTEN]
    assert written.count == 103
    assert len(written.examples) == len(set(written.examples)) == MAX_EXAMPLES
    assert written.examples[0].startswith(r"/tmp/\x1b[2J\n\udcff\u202e")
    assert all(len(one) <= MAX_EXAMPLE_CHARACTERS and one.isascii() and one.isprintable() for one in written.examples)


def call(number: int, **more: object) -> bytes:
    return tm.message(tm.RAW, tm.field(4, number), **more)


def test_call_whose_names_the_kernel_could_not_send_is_counted_as_dropped():
    told = after_start(call(257), tm.opened(b"/tmp/a", WRITE), call(257), call(59), call(85))
    assert told.actions[Action.FILES_WRITTEN].count == 1
    assert (told.observation, told.dropped) == (Observation.PARTIAL, 3)


def test_call_without_names_is_counted_in_whatever_form_its_number_comes():
    head = struct.pack("<HHI", 8, tm.RAW, 0)
    context, number = tm.field(1, tm.field(4, tm.PROGRAM)), tm.field(4, 257)
    arguments = tm.field(5, 2**64 - 100) + tm.field(6, 0x7FFF_0000_0000)
    told = after_start(
        head + context + number + arguments,
        head + number + arguments + context,
        head + number,
        call(257, cwd=b"/workspace/" + b"a" * 300),
        head + context + tm.field(4, 0) + arguments,
        head + tm.field(1, tm.field(4, tm.INIT)) + number,
    )
    assert (told.observation, told.dropped) == (Observation.PARTIAL, 4)
    assert told.actions[Action.PRIVILEGE].count == 0


def test_same_message_says_the_same_in_every_run_and_counts_each_time():
    opened = tm.opened(b"/etc/shadow")
    before = seen(opened)
    runs = [after_start(opened, opened), after_start(opened, tm.opened(b"/etc/shadow", process=tm.INIT), opened)]
    assert before.actions[Action.PROBES].count == 0
    assert [(run.actions[Action.PROBES].count, run.actions[Action.PROBES].examples) for run in runs] == [
        (2, ("/etc/shadow",))
    ] * 2


def test_calls_of_which_everything_was_sent_are_no_loss():
    told = after_start(call(2), tm.opened(b"a"), call(59), tm.message(tm.EXECVE_CALL), tm.execve(b"/bin/a"))
    assert (told.observation, told.dropped) == (Observation.OBSERVED, 0)
    assert told.actions[Action.PROGRAMS].count == 1
    assert told.actions[Action.PRIVILEGE].count == 0


def test_calls_before_the_programs_start_and_the_inits_are_no_loss():
    told = seen(call(257), call(59), tm.execve(), call(257, process=tm.INIT))
    assert (told.observation, told.dropped) == (Observation.OBSERVED, 0)


def test_processes_that_the_kernel_refused_for_their_number_are_counted_and_are_no_action():
    told = after_start(
        tm.process_call(0),
        tm.process_call(11),
        tm.process_call(11, tm.FORK_CALL),
        tm.process_call(1),  # EPERM: a user namespace
        tm.message(tm.CLONE_CALL, tm.field(3, 56)),  # where the call enters
    )
    assert told.refused_processes == 2
    assert {kind.count for kind in told.actions.values()} == {0}
    lie = tm.message(tm.CLONE_CALL, tm.field(2, 5))
    assert after_start(lie).observation is Observation.PARTIAL


def test_dropped_messages_make_it_partial_and_are_counted_once():
    told = after_start(
        tm.execve(b"/bin/a", dropped=3), tm.execve(b"/bin/b", dropped=5), tm.execve(b"/bin/c", dropped=1)
    )
    assert (told.observation, told.dropped) == (Observation.PARTIAL, 5)
    assert "dropped 5" in told.reason


def test_a_run_has_a_budget_of_messages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tally, "MAX_MESSAGES", 10)
    told = after_start(*[tm.opened(b"/tmp/a", WRITE)] * 30)
    assert told.actions[Action.FILES_WRITTEN].count == 8
    assert (told.observation, told.dropped) == (Observation.PARTIAL, 22)


def test_a_kernel_that_does_not_greet_was_not_observed():
    for first in (b"", b"\x08\x00", b"\xff" * 40):
        told = seen(first, greeted=False)
        assert told.observation is Observation.NOT_OBSERVED
        assert not told.actions


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"\x08",
        struct.pack("<HHI", 0, tm.OPEN, 0) + b"x",  # a header of no length
        struct.pack("<HHI", 0xFFFF, tm.OPEN, 0),  # one longer than the message
        struct.pack("<HHI", 8, tm.OPEN, 0) + b"\x0a\xff\xff\xff\xff\x0f",  # a context of 4 GiB
        struct.pack("<HHI", 8, tm.OPEN, 0) + b"\x0a" + b"\xff" * 20,  # a length without an end
        struct.pack("<HHI", 8, tm.OPEN, 0) + b"\x0b\x0c",  # groups
        struct.pack("<HHI", 8, tm.OPEN, 0) + tm.field(1, 7),  # a number for a context
        struct.pack("<HHI", 8, tm.OPEN, 0) + tm.field(1, b"") + tm.field(6, 5),  # a number for a path
        struct.pack("<HHI", 8, tm.RAW, 0) + tm.field(1, b"") + tm.field(4, b"mount"),  # bytes for a number
    ],
)
def test_a_lie_is_counted_as_missing_and_spoils_nothing_else(lie: bytes):
    told = after_start(lie, tm.opened(b"/etc/shadow"))
    assert (told.observation, told.dropped) == (Observation.PARTIAL, 1)
    assert told.actions[Action.PROBES].count == 1


def test_a_message_that_did_not_fit_is_not_read():
    counted = Tally()
    for one in (tm.HANDSHAKE, tm.execve()):
        counted.add(memoryview(one))
    counted.add(memoryview(tm.opened(b"/etc/shadow")), whole=False)
    told = tally.behaviour(counted.report(), SINCE, UNTIL)
    assert (told.actions[Action.PROBES].count, told.dropped) == (0, 1)


_numbers = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2, 10, 2**31, 2**32]))
_fields = st.lists(
    st.builds(tm.field, st.integers(1, 2**29 - 1) | st.integers(1, 12), _numbers | st.binary(max_size=90))
)
_shaped = st.builds(
    lambda kind, dropped, context, fields: (
        struct.pack("<HHI", 8, kind, dropped) + tm.field(1, b"".join(context)) + b"".join(fields)
    ),
    st.integers(0, 40),
    st.integers(0, 2**32 - 1),
    _fields,
    _fields,
)


@st.composite
def _bent(draw: st.DrawFn) -> bytes:
    """A message with some bytes changed, cut off or repeated."""
    data = bytearray(draw(_shaped))
    for _ in range(draw(st.integers(0, 4))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) * draw(st.integers(1, 3))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(max_size=300) | _shaped | _bent(), max_size=20), st.booleans())
def test_no_bytes_crash_the_reader_or_exceed_the_bounds(stream: list[bytes], proper: bool):
    told = seen(*((tm.HANDSHAKE, tm.execve()) if proper else ()), *stream, greeted=False)
    assert told.refused_processes <= len(stream)
    for kind in told.actions.values():
        assert kind.count <= 2 * len(stream)
        assert len(kind.examples) <= MAX_EXAMPLES
        assert all(len(one) <= MAX_EXAMPLE_CHARACTERS and one.isprintable() for one in kind.examples)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | _shaped)
def test_fields_never_lead_out_of_their_message(data: bytes):
    try:
        found = list(wire.fields(memoryview(data)))
    except wire.MalformedError:
        return
    assert len(found) <= wire.MAX_FIELDS
    assert sum(len(value) for _, value in found if not isinstance(value, int)) <= len(data)
    assert all(0 <= value < 2**64 for _, value in found if isinstance(value, int))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_reader_that_was_taken_over_cannot_say_more_than_a_report_may(data: st.DataObject):
    likely = st.tuples(
        st.integers(), st.none() | st.floats() | st.integers(), st.lists(st.text(max_size=9), max_size=3)
    )
    kinds = {action.value: data.draw(st.just([0, None, []]) | likely | _json) for action in Action}
    counts = {name: data.draw(_json | st.just(0)) for name in ("dropped", "refused")}
    document = {"greeted": data.draw(_json | st.just(True)), **counts}
    told = tally.behaviour(json.dumps({**document, "unread": 0, "kinds": kinds}).encode(), SINCE, UNTIL)
    for kind in told.actions.values():
        assert 0 <= kind.count <= 2**53
        assert kind.first is None or SINCE <= kind.first <= UNTIL


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100) | st.sampled_from([b"[" * 70_000, b'{"a":' * 10_000, b"null", b"NaN"]))
def test_a_report_of_other_bytes_says_nothing(report: bytes):
    assert tally.behaviour(report, SINCE, UNTIL).observation is Observation.NOT_OBSERVED
