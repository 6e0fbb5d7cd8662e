"""HumanEval: 164 problems whose candidate solutions are graded by running them.

The problems are OpenAI's (MIT licence), in `data/humaneval` unchanged. Source: Chen et al. 2021, arXiv:2107.03374.

How a candidate is graded: the sandbox starts `main.py`, which reads a completion mark from its standard input, made for
this run alone from 128 random bits, replaces the standard input by an empty one, runs the candidate's program (prompt,
completion, tests, and the call of `check`) from `candidate.py`, and writes the mark only when all of that returned. A
sample passed when its evaluation SUCCEEDED with exit code 0 and the mark is the last line of its standard output. So a
candidate that ends the process early, with whatever exit code, has not passed.

What this cannot prevent: the candidate runs in the harness's own process. Code that goes looking for the mark can find
it (in the stack's frames, through `gc`, in its own memory), or can replace what `check` compares with. Such forgery
needs grading in another process, which this suite does not do.
"""

import gzip
import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from crucible_client import results
from crucible_client.specs import EvaluationSpec, File, Limits, Program

MAX_LINE_BYTES = 4 << 20
MAX_SAMPLES = 1_000_000

HARNESS = '''\
"""Runs candidate.py; then, and only then, writes the mark that came on standard input."""
import os
import sys
import types


def _run():
    write, flush = os.write, sys.stdout.flush
    mark = b""
    while piece := os.read(0, 64):
        mark += piece
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "candidate.py")
    with open(path, encoding="utf-8") as file:
        code = compile(file.read(), path, "exec")
    module = types.ModuleType("candidate")
    module.__file__ = path
    sys.modules["candidate"] = module
    exec(code, module.__dict__)
    flush()
    write(1, b"\\n" + mark + b"\\n")


_run()
'''

# Takes part in whatever a check does with it, and equals nothing: not a number, yet a float.
_WRONG = """
    class Wrong(float):
        def no(self, *_):
            return False

        def same(self, *_):
            return self

        __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = no
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = same
        __abs__ = __round__ = __getitem__ = __call__ = same
        __hash__ = float.__hash__

        def __len__(self):
            return 0

        def __iter__(self):
            return iter(())

    return Wrong("nan")
"""

_EARLY_EXITS = (
    "    import sys\n    sys.exit(0)\n",
    "    import os\n    os._exit(0)\n",
)


class SamplesError(ValueError):
    """A file of samples is not one; the text is one line that says where and why."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        task_id: as `HumanEval/0`.
        prompt: the beginning of a module, up to the body of a function.
        entry_point: that function's name.
        canonical_solution: a body that is right.
        test: defines `check(candidate)`.
    """

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One candidate solution: what follows the prompt of `task_id`; `index` is its place in the file, from 0."""

    index: int
    task_id: str
    completion: str


@cache
def problems() -> Mapping[str, Problem]:
    """The 164 problems by task id, in their order."""
    packed = resources.files("crucible_client.suites").joinpath("data/humaneval/HumanEval.jsonl.gz").read_bytes()
    found = (Problem(**json.loads(line)) for line in gzip.decompress(packed).splitlines())
    return {problem.task_id: problem for problem in found}


def reference_samples() -> list[Sample]:
    """For every problem its own right solution: all must pass."""
    return [Sample(n, problem.task_id, problem.canonical_solution) for n, problem in enumerate(problems().values())]


def wrong_samples() -> list[Sample]:
    """For every problem a function that returns a wrong value: each reaches `check` and fails by AssertionError."""
    return [Sample(n, task_id, _WRONG) for n, task_id in enumerate(problems())]


def early_exit_samples() -> list[Sample]:
    """For every problem a function that ends the process with exit code 0, by `sys.exit` and `os._exit` in turn."""
    return [Sample(n, task_id, _EARLY_EXITS[n % len(_EARLY_EXITS)]) for n, task_id in enumerate(problems())]


def load_samples(path: Path) -> list[Sample]:
    """Reads samples, one JSON object with `task_id` and `completion` on each line.

    Raises:
        SamplesError: the file cannot be read, a line is malformed, or a problem is not known.
    """
    try:
        with path.open("rb") as lines:
            return list(_samples(path, iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b"")))
    except OSError as error:
        raise SamplesError(f"cannot read {path}: {error.strerror}") from None


def _samples(path: Path, lines: Iterable[bytes]) -> Iterator[Sample]:
    index = 0
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_BYTES:
            raise SamplesError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes")
        if not line.strip():
            continue
        if index >= MAX_SAMPLES:
            raise SamplesError(f"{path}: more than {MAX_SAMPLES} samples; split the file")
        yield _sample(path, number, index, line)
        index += 1


def _sample(path: Path, number: int, index: int, line: bytes) -> Sample:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise SamplesError(f"{path}, line {number}: not JSON") from None
    task_id, completion = (record.get(key) if isinstance(record, dict) else None for key in ("task_id", "completion"))
    if not isinstance(task_id, str) or not isinstance(completion, str):
        raise SamplesError(f'{path}, line {number}: expected {{"task_id": "…", "completion": "…"}}')
    if task_id not in problems():
        raise SamplesError(f"{path}, line {number}: HumanEval has no problem {task_id[:80]!r}")
    try:
        completion.encode()
    except UnicodeEncodeError:
        raise SamplesError(f"{path}, line {number}: the completion holds half a surrogate pair") from None
    return Sample(index, task_id, completion)


def new_mark() -> str:
    """An unguessable completion mark: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def source(sample: Sample) -> str:
    """The module that is run for a sample: prompt, completion, tests and the call of `check`."""
    problem = problems()[sample.task_id]
    return f"{problem.prompt}{sample.completion}\n{problem.test}\ncheck({problem.entry_point})\n"


def program(sample: Sample, mark: str) -> Program:
    """What the sandbox runs for a sample; see the module's words on how it is graded."""
    files = (File("main.py", HARNESS.encode()), File("candidate.py", source(sample).encode()))
    return Program("python", files, "main.py", stdin=mark.encode())


def spec(sample: Sample, mark: str, limits: Limits, engine: str = "") -> EvaluationSpec:
    """The evaluation of a sample, findable by its labels."""
    labels = {"suite": "humaneval", "task": sample.task_id, "sample": str(sample.index)}
    return EvaluationSpec(program(sample, mark), limits, engine, labels=labels)


def digest(sample: Sample, limits: Limits, engine: str) -> str:
    """Names what is graded, without the mark: another completion, limit or engine has another digest."""
    what: Any = [sample.task_id, HARNESS, source(sample), repr(limits), engine]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def passed(evaluation: results.Evaluation, stdout_end: bytes, mark: str) -> bool:
    """Whether a sample passed.

    Args:
        evaluation: terminal.
        stdout_end: the last bytes of its standard output, at least 64 when there are so many.
        mark: the one that was made for this run.
    """
    ended = evaluation.termination
    return (
        evaluation.state is results.State.SUCCEEDED
        and isinstance(ended, results.Exited)
        and ended.code == 0
        and not evaluation.stdout.truncated
        and stdout_end.endswith(f"\n{mark}\n".encode())
    )
