"""`crucible bench`: run suites of programs and grade them."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from crucible_client.async_client import AsyncClient
from crucible_client.cli import interruptible
from crucible_client.cli.failures import INTERRUPTED, Failure, failures
from crucible_client.cli.output import print_json, print_rows, printable
from crucible_client.cli.sizes import DURATION, SIZE
from crucible_client.specs import Limits
from crucible_client.suites import humaneval as suite
from crucible_client.suites.grading import Grade, graded
from crucible_client.suites.humaneval import Sample
from crucible_client.suites.results_file import ResultsFile
from crucible_client.suites.summary import Summary, summarize

_BUILT_IN: Mapping[str, Callable[[], list[Sample]]] = {
    "@reference": suite.reference_samples,
    "@wrong": suite.wrong_samples,
    "@early-exit": suite.early_exit_samples,
}
_DEFAULT_CONCURRENCY = 4


@click.group()
def bench() -> None:
    """Runs suites of programs and grades them."""


def _parse_ks(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    parts = value.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= suite.MAX_SAMPLES for part in parts):
        raise click.BadParameter("expected whole numbers separated by commas, as 1,10")
    return tuple(dict.fromkeys(int(part) for part in parts))


@bench.command()
@click.option(
    "--samples",
    required=True,
    metavar="FILE",
    help='JSON lines {"task_id", "completion"}, or the built-in sets @reference, @wrong, @early-exit.',
)
@click.option("-k", "ks", default="1", callback=_parse_ks, metavar="K,...", help="For which k to tell pass@k.")
@click.option(
    "--results",
    "results_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Default: FILE.results.jsonl.",
)
@click.option("--concurrency", type=click.IntRange(min=1, max=1024), help="Default: twice the slots of all executors.")
@click.option("--engine", default="", help="Default: the server's.")
@click.option("--wall-time", type=DURATION, default="10s", show_default=True, help="Of each sample.")
@click.option("--memory", type=SIZE, help="Of each sample. Default: the server's.")
@click.option("--json", "as_json", is_flag=True, help="Prints the summary as JSON.")
def humaneval(
    *,
    samples: str,
    ks: tuple[int, ...],
    results_path: Path | None,
    concurrency: int | None,
    engine: str,
    wall_time: timedelta,
    memory: int | None,
    as_json: bool,
) -> int:
    """Runs solutions of HumanEval's problems and tells pass@k.

    Every grade is kept in the results file as it comes: after Ctrl-C, or a crash, the same command goes on where it
    was. Exit code 1 when the infrastructure failed samples; run it again for those.
    """
    limits = Limits(wall_time=wall_time, memory_bytes=memory)
    with failures():
        chosen = _BUILT_IN[samples]() if samples in _BUILT_IN else suite.load_samples(Path(samples))
        if not chosen:
            raise Failure(f"{samples} holds no sample", 2)
        path = results_path or _results_path(samples)
        with ResultsFile(path) as kept:
            session = _Session(chosen, kept, limits, engine, quiet=as_json)
            try:
                interruptible.run(session.run(concurrency))
            except KeyboardInterrupt:
                done = len(session.decided())
                raise Failure(
                    f"stopped; {done} of {len(chosen)} grades are in {path}; the same command goes on from there",
                    INTERRUPTED,
                ) from None
            summary = session.summary(ks)
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary)
    if summary.undecided:
        why = printable(session.last_trouble)
        click.echo(f"crucible: {summary.undecided} samples have no grade ({why}); run the command again", err=True)
        return 1
    return 0


def _results_path(samples: str) -> Path:
    name = f"humaneval-{samples.removeprefix('@')}" if samples in _BUILT_IN else samples
    return Path(f"{name}.results.jsonl")


class _Session:
    """One run of the suite over those samples that have no grade yet."""

    def __init__(self, samples: list[Sample], kept: ResultsFile, limits: Limits, engine: str, *, quiet: bool) -> None:
        self._samples = samples
        self._kept = kept
        self._limits = limits
        self._engine = engine
        self._quiet = quiet
        self._keys = [(sample.index, suite.digest(sample, limits, engine)) for sample in samples]
        self._new: list[Grade] = []
        self._seconds = 0.0
        self.last_trouble = ""

    async def run(self, concurrency: int | None) -> None:
        """Grades what has no grade yet, keeping each as it comes."""
        todo = [one for one, key in zip(self._samples, self._keys, strict=True) if key not in self._kept.grades]
        if not todo:
            return
        async with AsyncClient.from_settings() as client:
            wide = concurrency or await _default_concurrency(client)
            with self._progress(len(self._samples) - len(todo)) as advance:
                began = time.monotonic()
                grades = graded(client, todo, concurrency=wide, limits=self._limits, engine=self._engine)
                async with aclosing(grades):
                    async for grade in grades:
                        self._take(grade)
                        self._seconds = time.monotonic() - began
                        advance(len(self.decided()))

    def decided(self) -> list[Grade]:
        """The grades of these samples, from the file and from now."""
        grades = self._kept.grades
        return [grades[key] for key in self._keys if key in grades]

    def summary(self, ks: tuple[int, ...]) -> Summary:
        """The figures."""
        decided = self.decided()
        return summarize(decided, samples=len(self._samples), ks=ks, new=self._new, seconds=self._seconds)

    def _take(self, grade: Grade) -> None:
        self._kept.add(grade)
        if grade.passed is None:
            self.last_trouble = grade.detail or grade.ended
        else:
            self._new.append(grade)

    def _progress(self, done: int) -> Any:
        if sys.stderr.isatty():
            return _Bar(len(self._samples), done)
        return nullcontext((lambda _done: None) if self._quiet else _Lines(len(self._samples)))


async def _default_concurrency(client: AsyncClient) -> int:
    slots = sum(process.slots for process in (await client.status()).processes)
    return min(256, 2 * slots) or _DEFAULT_CONCURRENCY


class _Bar:
    """A progress bar on standard error."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console  # loaded only where it is seen
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("HumanEval"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda done: self._progress.update(self._task, completed=done)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class _Lines:
    """A plain line on standard error at each tenth."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._tenth = 0

    def __call__(self, done: int) -> None:
        tenth = 10 * done // self._total
        if tenth > self._tenth:
            self._tenth = tenth
            click.echo(f"{done} of {self._total}", err=True)


def _print_summary(summary: Summary) -> None:
    rows = [
        ("samples", f"{summary.samples} of {summary.problems} problems"),
        ("passed", str(summary.passed)),
        ("failed", str(summary.failed)),
        ("without a grade", str(summary.undecided)),
        *[(f"ended {how}", str(count)) for how, count in summary.ended.items()],
        *[(f"pass@{k}", _show_pass(k, value)) for k, value in summary.pass_at.items()],
    ]
    if summary.ran:
        rows += [
            ("ran now", f"{summary.ran} in {summary.seconds:.1f} s, {summary.per_second:.2f} per second"),
            ("p50 / p95", f"{_show(summary.p50_seconds)} / {_show(summary.p95_seconds)}"),
        ]
    print_rows(("", ""), rows)


def _show_pass(k: int, value: float | None) -> str:
    return f"unknown: not every problem has {k} graded samples" if value is None else f"{value:.4f}"


def _show(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f} s"
