from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal, Optional

import pytest

from crucible_rpc.settings import SettingsError, load


@dataclass(frozen=True)
class Settings:
    listen: str
    slots: int = 2
    ratio: float = 0.5
    debug: bool = False
    home: Path = Path("/var/lib/x")
    grace: timedelta = timedelta(seconds=15)
    engines: tuple[str, ...] = ("a",)
    mode: Literal["wal", "memory"] = "wal"
    ca: Path | None = None
    limit: Optional[int] = None  # noqa: UP045
    labels: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self):
        if self.slots < 1:
            raise ValueError("slots must be at least 1")


def read(**variables):
    return load(Settings, "X_", {"X_LISTEN": "h:1", **{f"X_{name}": value for name, value in variables.items()}})


def test_defaults_stand_and_other_variables_do_not_matter():
    assert load(Settings, "X_", {"X_LISTEN": "h:1", "PATH": "/bin", "Y_SLOTS": "7"}) == Settings("h:1")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SLOTS", "7", 7),
        ("RATIO", "0.25", 0.25),
        ("DEBUG", "true", True),
        ("DEBUG", "0", False),
        ("HOME", "/x/y", Path("/x/y")),
        ("GRACE", "10", timedelta(seconds=10)),
        ("GRACE", "1.5s", timedelta(seconds=1.5)),
        ("GRACE", "500ms", timedelta(milliseconds=500)),
        ("GRACE", "2m", timedelta(minutes=2)),
        ("ENGINES", "gvisor, docker,", ("gvisor", "docker")),
        ("ENGINES", "", ()),
        ("MODE", "memory", "memory"),
        ("CA", "/ca", Path("/ca")),
        ("CA", "", None),
        ("LIMIT", "3", 3),
    ],
)
def test_each_type_is_read(name, text, value):
    assert getattr(read(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("SLOTS", "many", "a whole number"),
        ("SLOTS", "1.5", "a whole number"),
        ("RATIO", "nan", "a number"),
        ("DEBUG", "maybe", "true or false"),
        ("GRACE", "soon", "a duration such as 10, 10s, 500ms, 2m or 1h"),
        ("GRACE", "-1", "a duration"),
        ("GRACE", "9" * 30, "a duration"),
        ("HOME", "", "a path"),
        ("MODE", "disk", "one of wal, memory"),
        ("LIMIT", "x", "a whole number, or nothing"),
    ],
)
def test_a_malformed_value_is_one_line_with_variable_value_and_what_is_expected(name, text, expected):
    with pytest.raises(SettingsError) as caught:
        read(**{name: text})
    line = str(caught.value)
    assert line.startswith(f"X_{name}={text!r} is not valid; expected ")
    assert expected in line
    assert "\n" not in line


def test_a_long_value_is_cut():
    with pytest.raises(SettingsError) as caught:
        read(SLOTS="x\n" * 10_000)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_missing_variable_is_named():
    with pytest.raises(SettingsError, match="X_LISTEN is not set; expected a text"):
        load(Settings, "X_", {})


def test_an_unknown_variable_with_the_prefix_is_an_error():
    with pytest.raises(SettingsError, match="X_LISTNE is not a known setting; known are X_CA"):
        read(LISTNE="h:2")


def test_what_the_dataclass_refuses_is_a_settings_error():
    with pytest.raises(SettingsError, match="slots must be at least 1"):
        read(SLOTS="0")
