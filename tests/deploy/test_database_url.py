"""The database that the operator names reaches storage, and nobody else."""

import pytest

from crucible_deploy import stack
from crucible_deploy.credentials import Credentials
from crucible_deploy.layout import PROCESSES, LayoutError
from crucible_deploy.users import Account

URL = "postgresql://crucible:hunter2@db.example.org/crucible"


def environments(layout):
    accounts = {process: Account(process, 1000, 1000) for process in PROCESSES}
    specs = stack.specs(layout, accounts, Credentials("key", "00" * 32), stack.Options())
    return {spec.name: spec.full_environment() for spec in specs}


@pytest.fixture
def database_file(layout):
    layout.home.mkdir()
    layout.database_file.write_text(f"{URL}\n")
    layout.database_file.chmod(0o600)
    return layout.database_file


def test_without_a_file_storage_uses_its_own(layout):
    assert "CRUCIBLE_STORAGE_DATABASE_URL" not in environments(layout)["storage"]


def test_the_url_reaches_storage_alone(layout, database_file):
    found = environments(layout)
    assert found["storage"]["CRUCIBLE_STORAGE_DATABASE_URL"] == URL
    assert [name for name, one in found.items() if "hunter2" in str(one)] == ["storage"]


def test_a_file_that_others_can_read_or_that_says_nothing_is_refused_without_its_text(layout, database_file):
    database_file.chmod(0o640)
    with pytest.raises(LayoutError, match="chmod 600") as caught:
        environments(layout)
    assert "hunter2" not in str(caught.value)
    database_file.write_text("")
    database_file.chmod(0o600)
    with pytest.raises(LayoutError, match="is empty"):
        environments(layout)
