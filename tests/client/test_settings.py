"""Which setting wins, and what is said when one is missing."""

from pathlib import Path

import pytest

from crucible_client import ClientSettings, ClientSettingsError
from crucible_client.settings import load


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "client.toml").write_text('address = "file:1"\napi_key = "from-file"\nca_file = "/file/ca"\n')
    return tmp_path


def test_arguments_beat_the_environment_which_beats_the_file(home):
    environ = {"CRUCIBLE_HOME": str(home)}
    assert load(environ=environ) == ClientSettings("file:1", "from-file", Path("/file/ca"))
    environ |= {"CRUCIBLE_API_KEY": "from-env", "CRUCIBLE_ADDRESS": "env:2"}
    assert load(environ=environ) == ClientSettings("env:2", "from-env", Path("/file/ca"))
    assert load(address="arg:3", ca_file="/arg/ca", environ=environ) == ClientSettings(
        "arg:3", "from-env", Path("/arg/ca")
    )


def test_no_file_is_needed_when_everything_is_given(tmp_path):
    environ = {"CRUCIBLE_HOME": str(tmp_path / "none"), "CRUCIBLE_ADDRESS": "a:1", "CRUCIBLE_API_KEY": "k"}
    assert load(environ=environ) == ClientSettings("a:1", "k", None)


def test_missing_says_what_and_where(tmp_path):
    with pytest.raises(ClientSettingsError) as caught:
        load(environ={"CRUCIBLE_HOME": str(tmp_path)})
    text = str(caught.value)
    assert "no CRUCIBLE_ADDRESS and no CRUCIBLE_API_KEY" in text
    assert f"{tmp_path}/client.toml does not exist" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('address = "a:1"\napi_key = "secret', "not valid TOML"),
        ('address = "a:1"\napi_key = 5', "'api_key'"),
        ('adress = "a:1"', "'adress'"),
        ('address = "a:1"', "does not have it"),
        ('address = "https://a:1"\napi_key = "secret"', "host:port"),
        ('address = "a:99999"\napi_key = "secret"', "host:port"),
        ('address = "a:1"\napi_key = "secret\\nsecret"', "CRUCIBLE_API_KEY is not valid"),
        (b"\xff\xfe", "not valid TOML"),
    ],
)
def test_malformed_is_one_line_without_the_key(tmp_path, content, words):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "client.toml").write_bytes(content)
    with pytest.raises(ClientSettingsError) as caught:
        load(environ={"CRUCIBLE_HOME": str(tmp_path)})
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert "secret" not in text


def test_key_is_not_in_the_repr():
    assert "k-1234" not in repr(ClientSettings("a:1", "k-1234"))
