"""The bucket that the operator names reaches storage, and nobody else."""

import pytest

from crucible_deploy.layout import LayoutError
from tests.deploy.test_database_url import environments

TEXT = 'bucket = "b"\nendpoint = "https://s3.example.org"\naccess_key_id = "id"\nsecret_access_key = "hunter2"\n'


@pytest.fixture
def write(layout):
    layout.home.mkdir()

    def written(text, mode=0o600):
        layout.artifacts_file.write_text(text)
        layout.artifacts_file.chmod(mode)

    return written


def test_without_a_file_storage_uses_a_folder(layout):
    assert not [name for name in environments(layout)["storage"] if "_S3_" in name]


def test_bucket_and_credentials_reach_storage_alone(layout, write):
    write(TEXT)
    found = environments(layout)
    assert found["storage"]["CRUCIBLE_STORAGE_S3_BUCKET"] == "b"
    assert found["storage"]["CRUCIBLE_STORAGE_S3_ENDPOINT"] == "https://s3.example.org"
    assert found["storage"]["CRUCIBLE_STORAGE_S3_SECRET_ACCESS_KEY"] == "hunter2"
    assert [name for name, one in found.items() if "hunter2" in str(one)] == ["storage"]


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (TEXT, 0o640, "chmod 600"),
        ("hunter2", 0o600, "is no TOML"),
        (TEXT.replace("bucket", "bucked"), 0o600, "needs `bucket`"),
        ('bucket = "b"\nother = "hunter2"\n', 0o600, "takes texts named"),
        ("bucket = 5\n", 0o600, "takes texts named"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_its_text(layout, write, text, mode, said):
    write(text, mode)
    with pytest.raises(LayoutError, match=said) as caught:
        environments(layout)
    assert "hunter2" not in str(caught.value)
