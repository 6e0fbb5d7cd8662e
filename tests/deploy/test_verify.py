import json
import os
import sys

import pytest
from click.testing import CliRunner

from crucible_deploy import verify


def test_suite_is_told_of_this_machines_builds_and_of_nothing_else(layout):
    told = verify.environment(layout)
    assert told["CRUCIBLE_EXECUTOR_RUNSC"] == str(layout.paths.runsc)
    assert told["CRUCIBLE_EXECUTOR_INIT_DIR"] == str(layout.paths.init)
    assert told["CRUCIBLE_EXECUTOR_IMAGES_DIR"] == str(layout.paths.images)
    assert set(told) - {"PATH", "LANG"} == {name for name in told if name.startswith("CRUCIBLE_EXECUTOR_")}


def test_before_the_first_start_the_checkouts_own_interpreter_runs_the_suite(layout):
    assert verify.interpreter(layout) == verify.Path(sys.executable)


@pytest.mark.skipif(os.geteuid() == 0, reason="root is not refused")
def test_who_is_not_root_is_told_to_be():
    done = CliRunner().invoke(verify.verify, [])
    assert done.exit_code == 1
    assert "as root" in done.output


@pytest.mark.root
def test_command_runs_the_suite_and_passes_its_verdict_and_page_on(tmp_path, capfd):
    page = tmp_path / "page.md"
    done = CliRunner().invoke(verify.verify, ["--only", "mount", "--json", "--markdown", str(page)])
    made = json.loads(capfd.readouterr().out)
    assert done.exit_code == 0
    assert [one["verdict"] for one in made["attempts"]] == ["CONTAINED"]
    assert "`mount`" in page.read_text()
    assert str(tmp_path) not in page.read_text()
