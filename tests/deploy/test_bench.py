import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from crucible_deploy.bench import __main__ as command
from crucible_deploy.bench import (
    batches,
    burst,
    commands,
    control_plane,
    idle,
    load,
    machine,
    memory,
    neighbour,
    pool,
    processes,
    samples,
    storage_alone,
    throughput,
    trace,
    warm,
)
from crucible_deploy.bench.bare import flags
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.machine import Machine
from crucible_deploy.bench.peers.model import Compared
from crucible_deploy.bench.report import Measured, Report, Row, Section, print_report
from crucible_deploy.paths import Paths

MACHINE = Machine("A CPU", 2, "6.1", 4096, "v2", {"runsc": "20260527"}, 0.1, 2.5)


def done(ms, *, warm=True, ended=0.0):
    return load.Done(ms, warm, None, ended)


def many(count, seconds, *, warm=0, ms=100.0):
    return load.Many(seconds, tuple(done(ms, warm=number < warm) for number in range(count)), count)


def by_name(rows):
    return {row.name: row for row in rows}


def report_of(*rows, compared=()):
    return Report(MACHINE, (Section("one", Measured(tuple(rows), tuple(compared)), 1.5),))


# --- arithmetic ---


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 3), (95, 4.8), (99, 4.96), (100, 5)])
def test_percentiles_are_interpolated_between_the_nearest_values(percent, value):
    assert samples.percentile([5, 1, 4, 2, 3], percent) == pytest.approx(value)


def test_percentile_of_one_value_is_that_value():
    assert samples.p50([7.0]) == samples.p99([7.0]) == 7.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 101), ([1.0], -1)])
def test_percentile_of_nothing_is_refused(values, percent):
    with pytest.raises(ValueError, match="percentile"):
        samples.percentile(values, percent)


def test_control_plane_counts_all_processes_and_the_client():
    rows = by_name(control_plane.rows("control plane", "", 400, 2.0, {"storage": 2000.0, "the client": 400.0}))
    assert rows["control plane: evaluations"].value == 200
    assert rows["control plane: evaluations"].met
    assert rows["control plane: CPU of storage"].value == 5
    together = rows["control plane: CPU of all, with the client"]
    assert (together.value, together.met) == (6, True)
    dear = by_name(control_plane.rows("control plane", "", 100, 1.0, {"storage": 1001.0}))
    assert (dear[together.name].met, dear["control plane: evaluations"].met) == (False, False)


def test_storage_alone_compares_a_full_database_with_a_small_one():
    costs = {name: {"small_ms": 1.0, "large_ms": 1.4} for name in ("get", "page", "lease", "create")}
    costs["page"]["large_ms"] = 1.6
    costs = {
        "costs": costs,
        "small": 1000,
        "large": 100_000,
        "samples": 99,
        "filled_per_s": 2100.0,
        "lease_p99_ms": 12.0,
        "audit": {"records": 101_000, "heads": 60, "verify_s": 4.2, "verify_cpu_s": 2.1, "bytes_per_record": 446.0},
    }
    rates = {"batched_per_s": 2500.0, "created_per_s": 900.0, "lived_per_s": 400.0, "lived_cpu_ms": 1.2}
    workers = {"queued": 400, "lost": 0, "run_twice": 0, "per_s": {"1": 300.0, "2": 400.0, "4": 390.0, "8": 200.0}}
    found = {"rates": rates, "costs": costs, "workers": workers}
    rows = by_name(storage_alone.rows("SQLite", found))
    assert rows["storage alone on SQLite: created in batches"].met
    assert not rows["storage alone on SQLite: create, lease, start, finish"].met
    lease = rows["storage alone on SQLite: p99 of a lease, 100000 queued"]
    assert lease.met
    assert "too few" in lease.note
    assert rows["storage alone on SQLite: get one, 100000 stored"].ratio == pytest.approx(1.4)
    assert rows["storage alone on SQLite: audit log of 101000 records verified"].value == 4.2
    assert rows["storage alone on SQLite: size per audit record"].value == 446
    assert [name for name, row in rows.items() if row.met is False] == [
        "storage alone on SQLite: create, lease, start, finish",
        "storage alone on SQLite: list 50, 100000 stored",
        "storage alone on SQLite: ended by 8 workers",
    ]


@pytest.mark.parametrize(("read_mib", "met"), [(228.0, True), (228.1, False)])
def test_memory_that_an_artifact_takes_is_the_growth_of_the_peak(read_mib, met):
    found = {"mib": 1024, "before_mib": 100.0, "stored_mib": 150.0, "read_mib": read_mib, "in_s": 16.0, "out_s": 8.0}
    growth, stored, read = storage_alone.artifact_rows(found)
    assert (growth.value, growth.met) == (pytest.approx(read_mib - 100), met)
    assert "1024 MiB" in growth.name
    assert (stored.value, read.value) == (64, 128)


def test_rate_counts_what_came_after_the_lead():
    both = load.combined([many(10, 2.0, warm=3), many(20, 4.0, warm=1)])
    assert both.per_second == pytest.approx(5.0)
    assert both.warm == 4
    assert len(both.ms) == 30


# --- verdicts ---


def test_warm_latency_meets_its_targets_at_their_bounds_and_not_beyond():
    hand = [15.0] * 100
    met = by_name(warm.rows([done(30.0)] * 100, hand, [250.0], [200.0]))
    assert [row.met for row in met.values()] == [True, True, True, True, True, None]
    assert met["p50 over a warm sandbox by hand"].value == pytest.approx(15.0)
    missed = by_name(warm.rows([done(30.1)] * 95 + [done(101.0)] * 5, hand, [261.0], [200.0]))
    assert [row.met for row in missed.values()] == [False, False, False, True, False, None]


def test_runs_that_were_not_warm_are_counted_shown_and_fail_their_row():
    rows = by_name(warm.rows([done(20.0)] * 98 + [done(20.0, warm=False)] * 2, [10.0], [1.0], [1.0]))
    row = rows["of these, not warm"]
    assert (row.value, row.unit, row.met) == (2, "of 100", False)


def test_few_runs_are_said_to_be_too_few_for_a_p99():
    rows = by_name(warm.rows([done(20.0)] * 5, [10.0], [1.0], [1.0]))
    assert "too few" in rows["p99 of one RunEvaluation, warm"].note


def test_throughput_is_held_against_bare_runsc_and_the_cpu_time_against_its_bound():
    cpu = {"storage": 4000.0, "executor": 6000.0}
    rows = by_name(throughput.rows(throughput.Rates(many(400, 44.0), many(100, 11.0), 10.0, 400, cpu)))
    assert rows["CPU per run of storage"].value == pytest.approx(10.0)
    together = rows["CPU per run of all our processes"]
    assert (together.value, together.met) == (pytest.approx(25.0), True)
    against_bare, against_none = throughput.rows(throughput.Rates(many(400, 44.0), many(100, 11.0), 10.2, 400, cpu))[:2]
    assert (against_bare.met, against_none.met) == (False, True)


def test_the_rate_of_a_batch_is_held_against_its_target():
    found = by_name(batches.rows(10_000, 4.0, 2000.0, 8.0))
    alone = found["batch: created by storage alone"]
    assert (alone.value, alone.met) == (pytest.approx(2500.0), True)
    assert found["batch: CPU of storage"].value == pytest.approx(0.2)
    assert found["batch: created through the gateway"].ratio == pytest.approx(0.5)
    assert batches.rows(10_000, 6.0, 2000.0, 8.0)[0].met is False


def test_burst_rates_and_percentiles_are_of_all_bursts():
    at_once = load.Many(10.0, tuple(done(float(ms), warm=False) for ms in range(1, 101)), 100)
    rows = by_name(burst.rows([many(16, 1.0, warm=16), many(16, 3.0, warm=15)], 16, 9.0, at_once, 10.0))
    burst_row = rows["burst of 16 from a pool of 20, 4-wide"]
    assert burst_row.value == pytest.approx(8.0)
    assert "31 of 32 warm" in burst_row.note
    assert rows["100 submitted at once: worst"].value == 100.0
    assert rows["100 submitted at once: p50"].value == pytest.approx(50.5)


def test_time_that_two_hierarchies_count_is_counted_once(tmp_path):
    v1, v2 = tmp_path / "cpuacct", tmp_path / "unified"
    v1.mkdir()
    v2.mkdir()
    (v2 / "cpu.stat").write_text("usage_usec 2000000\nuser_usec 1\n")
    assert processes.cgroup_cpu_s([v2]) == 2.0
    (v1 / "cpuacct.usage").write_text("2000000000\n")
    assert processes.cgroup_cpu_s([v2, v1]) == 2.0
    assert processes.cgroup_cpu_s([tmp_path]) == 0.0


def test_idle_cpu_is_judged_on_average_and_for_the_busiest():
    rows = by_name(idle.rows(idle.Waiting((16.0, 18.0), (0.1, 0.4), 20.0)))
    assert rows["memory of an idle warm sandbox, PSS"].value == 17.0
    assert rows["CPU of an idle warm sandbox"].met
    assert not rows["CPU of the busiest"].met


def test_trace_may_cost_a_tenth():
    assert trace.rows([110.0], [100.0])[0].met
    assert not trace.rows([110.2], [100.0])[0].met


@pytest.mark.parametrize("kept", [True, False, None])
def test_a_neighbour_keeps_the_promised_part_or_misses_its_target_unless_the_machine_was_too_busy_to_tell(kept):
    found = {"limit": "disk", "alone": 100.0, "beside": 80.0, "ratio": 0.8, "others_cpus": 0.05, "kept": kept}
    row = neighbour.row(found)
    assert (row.met, row.value, row.baseline) == (kept, 80.0, 100.0)
    assert ("too busy" in row.note) is (kept is None)
    assert "disk" in row.name
    assert "0.05 CPUs" in row.note


def test_memory_growth_between_two_steps_is_judged():
    rows = by_name(memory.rows(1000, {"storage": 50.0}, [{"storage": 60.0}, {"storage": 63.1}]))
    assert not rows["memory of storage, after 2000"].met
    assert rows["memory of storage, idle"].value == 50.0


# --- report ---


def test_targets_and_failures_are_counted_and_only_failures_and_strictness_fail_the_command():
    met, missed = Row("a", 1.0, "ms", met=True), Row("b", 2.0, "ms", met=False)
    assert report_of(met).exit_code(strict=True) == 0
    assert report_of(met, missed).exit_code(strict=False) == 0
    assert report_of(met, missed).exit_code(strict=True) == 1
    assert report_of(met, Row.failure("c", "it burnt")).exit_code(strict=False) == 1
    assert report_of(met, compared=[Compared("peer", "it burnt", failed=True)]).exit_code(strict=False) == 1
    assert report_of(met, compared=[Compared("peer", "not installed")]).exit_code(strict=False) == 0


def test_json_holds_machine_figures_ratios_and_counts():
    figure = Row("a", 3.0, "ms", 2.0, "by hand", "<= 1 x", met=False)
    absent = Compared("peer", "not installed")
    found = json.loads(report_of(figure, Row.failure("b", "why"), compared=[absent]).as_json())
    assert (found["met"], found["missed"], found["failed"]) == (0, 1, 1)
    assert found["machine"]["cpu"] == "A CPU"
    assert found["sections"][0]["rows"][0]["ratio"] == 1.5
    assert found["sections"][0]["rows"][1]["value"] is None
    assert found["sections"][0]["compared"] == [{"name": "peer", "reason": "not installed", "failed": False}]


def test_tables_show_misses_failures_absent_peers_and_the_machine(capsys):
    inside = {"kernel": "the host's", "uid": "0"}
    ran = Compared("native python3", median_ms=20.0, p95_ms=30.0, per_second=99.0, runs=5, inside=inside)
    rows = [Row("a", 3.0, "ms", 2.0, "by hand", "<= 1 x", met=False), Row.failure("b", "it burnt")]
    print_report(report_of(*rows, compared=[ran, Compared("bubblewrap", "not installed: make bench-peers")]))
    shown = capsys.readouterr().out
    for words in ("NO", "FAILED", "it burnt", "1.50 x", "not run", "make bench-peers", "the host's", "A CPU, 2 cores"):
        assert words in shown
    assert "0 targets met, 1 missed, 1 could not be measured" in shown


def test_machine_that_was_busy_before_the_bench_is_told_of():
    busy = Machine("A CPU", 2, "6.1", 4096, "v2", {}, 3.0)
    assert any("WARNING" in line for line in busy.lines())
    assert not any("WARNING" in line for line in MACHINE.lines())


def test_this_machine_can_be_named(tmp_path):
    seen = machine.look(Paths(home=tmp_path, cache=tmp_path))
    assert seen.cpu
    assert seen.cores == len(os.sched_getaffinity(0))
    assert seen.memory_mib > 100
    assert {"crucible", "Python", "grpcio", "runsc"} <= set(seen.versions)


# --- the command ---


@pytest.fixture
def subjects(monkeypatch):
    """The command with a stand of nothing; `subjects[name] = measure` replaces a subject."""
    ended = []

    @asynccontextmanager
    async def stand(common, say, choice):
        try:
            yield SimpleNamespace(say=say, stacks=())
        finally:
            ended.append(True)

    async def well(_):
        return Measured((Row("a", 1.0, "ms", met=True),))

    measures = dict.fromkeys(command.SUBJECTS, well)
    monkeypatch.setattr(command, "stand", stand)
    monkeypatch.setattr(command, "SUBJECTS", measures)
    yield measures
    assert ended


def test_subject_that_fails_is_a_row_and_fails_the_command_and_the_others_go_on(subjects, capsys):
    async def fails(_):
        raise BenchError("it burnt")

    subjects["warm"] = fails
    assert command.main(["--json"]) == 1
    sections = {one["name"]: one for one in json.loads(capsys.readouterr().out)["sections"]}
    assert sections["warm"]["rows"][0] | {"failed": True, "note": "it burnt"} == sections["warm"]["rows"][0]
    assert sections["memory"]["rows"][0]["met"] is True


def test_failure_that_nobody_foresaw_is_a_row_too(subjects, capsys):
    async def fails(_):
        raise LookupError

    subjects["warm"] = fails
    assert command.main(["--json"]) == 1
    sections = {one["name"]: one for one in json.loads(capsys.readouterr().out)["sections"]}
    assert sections["warm"]["rows"][0]["note"] == "LookupError"
    assert sections["memory"]["rows"][0]["met"] is True


def test_figures_of_a_stack_of_which_a_process_was_started_again_are_none(subjects, capsys, monkeypatch):
    pids = iter([7, 7, 7, 8])
    stand = command.stand

    @asynccontextmanager
    async def with_a_stack(common, say, choice):
        async with stand(common, say, choice) as ready:
            ready.stacks = (None,)
            yield ready

    monkeypatch.setattr(command, "stand", with_a_stack)
    monkeypatch.setattr(command.processes, "of_stack", lambda _: {"executor": next(pids)})
    assert command.main(["--json", "--only", "idle", "--only", "warm"]) == 1
    sections = {one["name"]: one for one in json.loads(capsys.readouterr().out)["sections"]}
    assert sections["idle"]["rows"][0]["met"] is True
    assert "started again" in sections["warm"]["rows"][0]["note"]


def test_all_subjects_are_measured_and_only_those_that_are_named(subjects, capsys):
    assert command.main(["--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["sections"]] == ["set-up", *subjects]
    assert command.main(["--json", "--only", "idle"]) == 0
    shown = capsys.readouterr()
    assert [one["name"] for one in json.loads(shown.out)["sections"]] == ["set-up", "idle"]
    assert "bench: idle took 0 s" in shown.err


def test_subjects_for_which_no_time_is_left_are_shown_and_fail_nothing(subjects, capsys, monkeypatch):
    async def lasts(_):
        await asyncio.sleep(0.3)
        return Measured()

    subjects["idle"] = lasts
    monkeypatch.setattr(command, "Sizes", lambda: command.TINY.__class__(budget_s=0.2))
    assert command.main(["--only", "idle", "--only", "warm"]) == 0
    shown = capsys.readouterr().out
    assert "not measured" in shown
    assert "make bench-full" in shown


def test_interruption_ends_the_stand_and_says_130(subjects, capsys):
    async def interrupts(_):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(30)

    subjects["warm"] = interrupts
    assert command.main([]) == 130
    assert "nothing of it is left" in capsys.readouterr().err


# --- parts ---


def test_pool_size_is_read_from_a_page_of_metrics():
    page = '# HELP x y\ncrucible_executor_pool_size{engine="gvisor"} 4.0\n'
    assert pool.sample(page, 'crucible_executor_pool_size{engine="gvisor"}') == 4.0
    assert pool.sample(page, 'crucible_executor_pool_size{engine="docker"}') == 0.0


def test_bare_runsc_gets_the_flags_of_the_sandbox_but_not_its_folder_or_trace():
    argv = ["/x/runsc", "--root=/run/a", "--network=none", "--pod-init-config=/run/a/t.json", "run", "--bundle=/run/a"]
    assert flags(argv) == ["--network=none"]


async def test_command_that_is_cancelled_is_ended_with_its_children():
    script = "import subprocess, sys; subprocess.run(['/bin/sh', '-c', 'sleep 300; echo ' + sys.argv[1]])"
    token = "crucible-bench-cancelled"
    running = asyncio.create_task(commands.run([sys.executable, "-c", script, token]))
    async with asyncio.timeout(20):
        while not _alive(f"echo {token}") and not _alive("sys.argv[1]"):  # noqa: ASYNC110  # no event of ours
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(20):
        while _alive(token):  # noqa: ASYNC110  # no event of ours
            await asyncio.sleep(0.01)


async def test_command_that_has_to_clean_up_is_given_the_time(tmp_path):
    script = "try:\n  ready()\nfinally:\n  pathlib.Path(sys.argv[2]).touch()"
    await cancelled_when_ready(script, tmp_path, grace_s=20)
    assert (tmp_path / "cleaned").exists()


async def test_command_that_does_not_clean_up_in_its_time_is_killed(tmp_path):
    await cancelled_when_ready("signal.signal(signal.SIGINT, signal.SIG_IGN)\nready()", tmp_path, grace_s=0.2)


async def cancelled_when_ready(script, folder, grace_s):
    """Returns when the command has ended, which is cancelled as soon as its script has called `ready`."""
    ready = "import pathlib, signal, sys, time\ndef ready():\n  pathlib.Path(sys.argv[1]).touch()\n  time.sleep(300)\n"
    argv = [sys.executable, "-c", ready + script, str(folder / "ready"), str(folder / "cleaned")]
    running = asyncio.create_task(commands.run(argv, grace_s=grace_s))
    async with asyncio.timeout(20):
        while not (folder / "ready").exists():  # noqa: ASYNC110  # no event of ours
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


def _alive(text):
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if text in line]


async def test_command_that_takes_too_long_or_fails_says_so():
    with pytest.raises(BenchError, match="did not end within"):
        await commands.run(["sleep", "60"], timeout_s=0.2)
    with pytest.raises(BenchError, match="does not start"):
        await commands.run(["/nonexistent/program"])
    failed = await commands.run(["/bin/sh", "-c", "echo why >&2; exit 3"])
    with pytest.raises(BenchError, match="exit code 3: why"):
        commands.expect(failed, "it", b"")


async def test_command_is_given_its_input_and_timed():
    ended = await commands.run(["cat"], b"hello")
    assert (ended.stdout, ended.returncode) == (b"hello", 0)
    assert 0 < ended.seconds < 20


async def test_lead_of_a_load_is_not_counted():
    calls = []

    class Client:
        async def run(self, spec):
            calls.append(time.monotonic())
            await asyncio.sleep(0.01)
            kind = load.StartKind.WARM if len(calls) <= 4 else load.StartKind.COLD
            provenance = SimpleNamespace(start_kind=kind)
            return SimpleNamespace(state=load.State.SUCCEEDED, provenance=provenance)

    counted = []
    began = time.monotonic()
    ran = await load.many(Client(), [load.trivial()] * 10, 2, lead=4, on_counting=lambda: counted.append(len(calls)))
    assert len(ran.done) == 6
    assert ran.warm == 0
    assert len(counted) == 1
    assert 0.02 < ran.seconds < time.monotonic() - began - 0.01  # three turns of two lanes, without the two of the lead
    assert 5 < ran.programs < 6  # one was under way when the lead ended


async def test_load_ends_with_the_first_program_that_does_not_succeed():
    class Client:
        async def run(self, spec):
            return SimpleNamespace(state=load.State.FAILED, provenance=None, name="evaluations/1", termination="why")

    with pytest.raises(BenchError, match="why"):
        await load.many(Client(), [load.trivial()] * 10, 3)
