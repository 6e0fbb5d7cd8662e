"""Sizes and durations are read strictly."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_client.cli.sizes import parse_duration, parse_size, show_size


@pytest.mark.parametrize(
    ("text", "count"), [("512MiB", 512 << 20), ("1.5GiB", 3 << 29), ("1KB", 1000), ("7", 7), ("9B", 9), ("0.5KiB", 512)]
)
def test_size(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "MiB", "512mib", "512 MiB", "-1", "0", "1.3B", "1e6", "1_000", "٣", "1MiB\n", "9" * 40]
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="expected"):
        parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("500ms", 0.5), ("1.5m", 90), ("2h", 7200)])
def test_duration(text, seconds):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", "-1s", "0s", "1d", "inf", "nan", "30S", "999999999999999h"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="expected"):
        parse_duration(text)


@given(st.integers(min_value=1, max_value=1 << 49))
def test_bytes_are_what_was_written(count):
    assert parse_size(f"{count}") == parse_size(f"{count}B") == count
    assert show_size(count)
