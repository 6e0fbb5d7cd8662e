import asyncio
import io
import json
import logging

import pytest

from crucible_rpc import logs


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
def stream(restored):
    made = io.StringIO()
    logs.configure("storage", "INFO", made)
    return made


LOG = logging.getLogger("some.module")


def fail(text):
    raise ValueError(text)


def records(stream):
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


def test_a_record_is_one_json_line_with_bound_and_own_fields(stream):
    with logs.bound(evaluation="evaluations/1"), logs.bound(attempt=2):
        LOG.info("lease %s", "expired", extra=logs.fields(epoch=3, ok=True))
    LOG.debug("not at this level")
    LOG.info("after")
    first, second = records(stream)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "INFO",
        "process": "storage",
        "logger": "some.module",
        "message": "lease expired",
        "evaluation": "evaluations/1",
        "attempt": 2,
        "epoch": 3,
        "ok": True,
    }
    assert "evaluation" not in second


@pytest.mark.parametrize(
    "text", ['x\n{"level":"ERROR"}', "a\r\nb", "\x1b[2J", "a\u2028b", "a\x85b", "\x00", "\u202eabc"]
)
def test_a_text_cannot_begin_a_line_or_control_a_terminal(stream, restored, text):
    def log():
        LOG.info("got %s", text, extra=logs.fields(**{"name": text, text: 1}))
        try:
            fail(text)
        except ValueError:
            LOG.exception("failed")

    log()
    raw = stream.getvalue()
    assert raw.count("\n") == 2
    assert raw.replace("\n", "").isprintable()
    assert raw.isascii()
    assert records(stream)[0]["name"] == text
    assert text in records(stream)[1]["exception"]
    terminal = Terminal()
    logs.configure("storage", "INFO", terminal)
    log()
    assert terminal.getvalue().replace("\n", "").isprintable()
    assert all(
        line.startswith("    ") or " INFO " in line or " ERROR " in line for line in terminal.getvalue().splitlines()
    )


def test_a_field_cannot_replace_what_every_record_has(stream):
    LOG.info("true", extra=logs.fields(level="DEBUG", process="other", message="false"))
    assert [records(stream)[0][key] for key in ("level", "process", "message")] == ["INFO", "storage", "true"]


def test_a_record_is_bounded(stream):
    try:
        fail("e" * 1_000_000)
    except ValueError:
        LOG.exception("m" * 1_000_000, extra=logs.fields(**{f"f{n}": "v" * 1_000_000 for n in range(100)}))
    LOG.info("big", extra=logs.fields(number=10**5000, key=b"\xff"))
    assert len(stream.getvalue()) < 70_000
    assert records(stream)[0]["message"].endswith("…")


def test_arguments_that_do_not_fit_do_not_lose_the_record():
    record = logging.LogRecord("a", logging.INFO, "f", 1, "%d apples", ("no",), None)
    assert "%d apples" in logs.JsonFormatter("storage").format(record)


async def test_bind_lasts_for_its_task_only(stream):
    async def one(name):
        logs.bind(evaluation=name)
        await asyncio.sleep(0)
        LOG.info("x")

    await asyncio.gather(one("a"), one("b"))
    LOG.info("outside")
    assert [record.get("evaluation") for record in records(stream)] == ["a", "b", None]
