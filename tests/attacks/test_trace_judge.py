"""The judge of the trace: a record that lost, made up or was forged is seen; an honest one is not accused."""

import struct
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from crucible_executor.behaviour import Action, Actions, Behaviour, Observation
from crucible_executor.tracing import tally, wire
from crucible_executor.verify import control_trace
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_executor.verify.attempts.trace import FLOOD, FORGED, TRUTHS
from crucible_executor.verify.judges import JUDGES
from crucible_executor.verify.model import Control

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def seen(name, behaviour):
    attempt = next(one for one in ATTEMPTS if one.name == name)
    return JUDGES["trace"](SimpleNamespace(attempt=attempt, behaviour=behaviour))


def record(action, count, *examples, observation=Observation.OBSERVED, dropped=0):
    kinds = {one: Actions() for one in Action} | {action: Actions(count, NOW, examples)}
    return Behaviour(observation, "", kinds, dropped)


@pytest.mark.parametrize("name", TRUTHS)
def test_record_that_says_what_was_done_is_not_accused(name):
    truth = TRUTHS[name]
    assert seen(name, record(truth.action, truth.count, "/tmp/done")) == []


@pytest.mark.parametrize("name", TRUTHS)
def test_record_that_is_silent_is_a_breach(name):
    assert "the program did" in seen(name, record(TRUTHS[name].action, 0))[0]


def test_what_is_lost_and_counted_as_lost_is_no_breach():
    lost = record(Action.PRIVILEGE, FLOOD - 9, observation=Observation.PARTIAL, dropped=9)
    assert seen("flooded-trace", lost) == []


def test_what_is_lost_and_only_half_counted_is_a_breach():
    lost = record(Action.PRIVILEGE, FLOOD - 9000, observation=Observation.PARTIAL, dropped=4500)
    assert "4500 dropped" in seen("flooded-trace", lost)[0]


def test_what_was_dropped_after_the_last_message_is_no_breach_of_a_record_that_says_it_is_partial():
    # Seen of a real flood on a busy machine: the kernel tells of a drop with its next message, and there was none.
    lost = record(Action.PRIVILEGE, 249_749, observation=Observation.PARTIAL, dropped=10_250)
    assert seen("flooded-trace", lost) == []
    unsaid = record(Action.PRIVILEGE, FLOOD - 1)
    assert "the program did" in seen("flooded-trace", unsaid)[0]


def test_loss_that_is_called_a_full_observation_is_a_breach():
    lost = record(Action.PRIVILEGE, FLOOD - 9, observation=Observation.OBSERVED, dropped=9)
    assert seen("flooded-trace", lost) == ["9 messages were dropped, and the record says OBSERVED"]


def test_run_whose_observation_ended_is_a_breach():
    assert seen("kill-the-reader", Behaviour.not_observed("the reader died")) == [
        "its run was not observed: the reader died"
    ]


@pytest.mark.parametrize("example", ["\x1b[2J", "two\nlines", "\u202e", "y" * 161])
def test_example_that_is_not_plain_bounded_text_is_a_breach(example):
    assert "plain text" in seen("trace-socket", record(Action.FILES_WRITTEN, 1, example))[0]


def test_action_that_was_made_up_is_a_breach():
    made_up = record(Action.FILES_WRITTEN, 1, f"/{FORGED}")
    assert seen("forged-trace", made_up) == ["the record holds what the program never did"]
    assert "says 2" in seen("forged-trace", record(Action.FILES_WRITTEN, 2))[0]


def test_no_trace_is_no_evidence_of_anything():
    assert seen("forged-trace", None) == []


def opened(name):
    path = struct.pack("<BB", 6 << 3 | 2, len(name)) + name + bytes([7 << 3, 0x41])
    return (struct.pack("<HHI", 8, wire.Kind.OPEN, 0) + path).hex()


def test_planted_weaknesses_make_the_records_that_the_judge_must_see_through():
    silent = control_trace.record(Control(silent_trace=True), [])
    raw = control_trace.record(Control(trace_fd=True, raw_trace=True), [opened(b"/tmp/\x1b[2J"), "00", ""])
    assert "the program did" in seen("huge-trace-messages", silent)[0]
    assert any("plain text" in one for one in seen("odd-names-in-the-trace", raw))
    assert control_trace.record(Control(), []) is None


def test_record_of_a_planted_connection_is_made_by_the_reader_itself():
    executed = (struct.pack("<HHI", 8, wire.Kind.EXECVE, 0)).hex()
    made = control_trace.record(Control(trace_fd=True), [executed, opened(f"/{FORGED}".encode())])
    assert made.observation is Observation.OBSERVED
    assert "the record holds what the program never did" in seen("forged-trace", made)
    assert tally.MAX_MESSAGES < FLOOD  # so that a flood cannot be held whole
