"""The suite grades what it is given, and only that."""

import json
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from crucible_client import results
from crucible_client.specs import Limits
from crucible_client.suites import humaneval
from crucible_client.suites.humaneval import Sample

pytestmark = pytest.mark.slow

FAILED_CHECK = 86


def run_all(samples: list[Sample]) -> list[tuple[int, bytes, str]]:
    """Exit code, standard output and mark of each."""
    marks = [humaneval.new_mark() for _ in samples]
    programs = [humaneval.program(sample, mark) for sample, mark in zip(samples, marks, strict=True)]
    batch = [[{file.path: file.content.decode() for file in one.files}, one.stdin.decode()] for one in programs]
    harness = Path(__file__).with_name("forked_harness.py")
    command = [sys.executable, "-I", str(harness)]
    ran = subprocess.run(command, input=json.dumps(batch).encode(), capture_output=True, timeout=60, check=True)
    said = json.loads(ran.stdout)
    return [(code, out.encode(), mark) for (code, out), mark in zip(said, marks, strict=True)]


def evaluation(code: int, out: bytes, termination=None, *, truncated=False) -> results.Evaluation:
    ended = termination or results.Exited(code)
    state = results.State.SUCCEEDED if ended == results.Exited(0) else results.State.FAILED
    stdout = results.OutputSummary(len(out), len(out), truncated, out[:4096])
    values = dict.fromkeys(results.Evaluation.__dataclass_fields__)
    return results.Evaluation(**values | {"state": state, "termination": ended, "stdout": stdout})


def count_passed(ran: list[tuple[int, bytes, str]]) -> int:
    return sum(humaneval.passed(evaluation(code, out), out[-128:], mark) for code, out, mark in ran)


def sample(completion: str) -> Sample:
    return Sample(0, "HumanEval/0", completion)


def test_there_are_164_problems():
    assert list(humaneval.problems()) == [f"HumanEval/{n}" for n in range(164)]


def test_every_reference_solution_passes():
    assert count_passed(run_all(humaneval.reference_samples())) == 164


def test_every_wrong_solution_reaches_its_check_and_fails_there():
    ran = run_all(humaneval.wrong_samples())
    assert Counter(code for code, _, _ in ran) == {FAILED_CHECK: 164}
    assert count_passed(ran) == 0


def test_every_early_exit_ends_with_code_0_and_does_not_pass():
    ran = run_all(humaneval.early_exit_samples())
    assert Counter(code for code, _, _ in ran) == {0: 164}
    assert count_passed(ran) == 0


@pytest.mark.parametrize(
    "completion",
    [
        "    print('0' * 32)\n    raise SystemExit\n",
        "    import sys\n    print(sys.stdin.read())\n    sys.exit(0)\n",
        "    pass\n\nimport os\nprint(open(0).read())\nos._exit(0)\n",
        "    pass\ncheck = lambda candidate: None\nimport sys\nsys.exit()\n",
        "    pass\nimport atexit\natexit.register(print, 'last')\n",
        "    this is no Python\n",
        "\0",
    ],
)
def test_what_does_not_return_from_its_check_does_not_pass(completion):
    assert count_passed(run_all([sample(completion)])) == 0


def test_candidate_that_searches_the_stack_can_forge_the_mark():
    """A limit of grading in the candidate's own process, kept here so that what is written about it stays true."""
    forged = """
    import os, sys
    frame = sys._getframe()
    while "mark" not in frame.f_locals:
        frame = frame.f_back
    os.write(1, b"\\n" + frame.f_locals["mark"] + b"\\n")
    os._exit(0)
"""
    assert count_passed(run_all([sample(forged)])) == 1


def test_output_of_a_right_solution_does_not_disturb_its_grade():
    right = humaneval.reference_samples()[0].completion
    noisy = f"    print('no newline', end='')\n{right}\nimport sys\nsys.stdout.write('x' * 10000)\n"
    assert count_passed(run_all([sample(noisy)])) == 1


def test_pass_needs_success_exit_code_0_and_the_whole_output():
    mark = humaneval.new_mark()
    out = f"\n{mark}\n".encode()
    assert humaneval.passed(evaluation(0, out), out, mark)
    assert not humaneval.passed(evaluation(1, out), out, mark)
    assert not humaneval.passed(evaluation(0, out, truncated=True), out, mark)
    assert not humaneval.passed(evaluation(0, out, results.LimitExceeded(results.Limit.WALL_TIME)), out, mark)
    assert not humaneval.passed(evaluation(0, out), out + b"more", mark)
    assert not humaneval.passed(evaluation(0, out), b"x" + out[1:], mark)
    assert not humaneval.passed(evaluation(0, out), out, humaneval.new_mark())


def test_mark_differs_each_time_and_is_not_in_the_files():
    one, other = (humaneval.program(sample(""), humaneval.new_mark()) for _ in range(2))
    assert one.stdin != other.stdin
    assert one.files == other.files
    assert all(one.stdin not in file.content for file in one.files)


def test_digest_names_what_is_graded():
    limits = Limits(wall_time=timedelta(seconds=1))
    digest = humaneval.digest(sample("a"), limits, "")
    assert digest == humaneval.digest(sample("a"), limits, "")
    assert len({digest, humaneval.digest(sample("b"), limits, ""), humaneval.digest(sample("a"), limits, "x")}) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 2: not JSON"),
        (b"[]", "line 2: expected"),
        (b'{"task_id": "HumanEval/0"}', "line 2: expected"),
        (b'{"task_id": "HumanEval/999", "completion": ""}', "no problem 'HumanEval/999'"),
        (b'{"task_id": "HumanEval/0", "completion": "\\ud800"}', "surrogate"),
        (b"\xff", "line 2: not JSON"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b" " * (5 << 20), "longer than"),
    ],
)
def test_malformed_samples_are_refused_with_their_line(tmp_path, line, words):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"task_id": "HumanEval/1", "completion": "x"}\n' + line + b"\n")
    with pytest.raises(humaneval.SamplesError, match=words):
        humaneval.load_samples(path)


def test_samples_keep_their_order_and_blank_lines_do_not_count(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"task_id": "HumanEval/1", "completion": "x"}\n\n{"task_id": "HumanEval/0", "completion": "y"}')
    assert humaneval.load_samples(path) == [Sample(0, "HumanEval/1", "x"), Sample(1, "HumanEval/0", "y")]
