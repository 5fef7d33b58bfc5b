"""Whole sweeps: what is planned ends as records, whatever is killed on the way. Real processes throughout."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import pty
import re
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sample_records
from fake_worker import CALIBRATION, CALIBRATION_LATER, ENVIRONMENT, TRACE
from test_launcher import fake_command_of, make_case, wait_until_gone

from infsa_bench.agenda import Agenda
from infsa_bench.analyze.dominance import Dominance
from infsa_bench.analyze.predict import Prediction, Predictor
from infsa_bench.codec import decode
from infsa_bench.energy_plan import ENERGY_PRESETS, EnergyPreset, TrialShare
from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.execute.launcher import CaseRun, Launcher, Patience
from infsa_bench.execute.local_engine import LocalEngine
from infsa_bench.execute.messages import RunCommand
from infsa_bench.execute.station import StartLauncher
from infsa_bench.peaks import PEAKS
from infsa_bench.protocol import PROTOCOLS, Protocol
from infsa_bench.record import EnergyCalibration, Failure, Measurement, Record, TracePoint
from infsa_bench.schedule import FIRST_SHARE_SECONDS, Plan, Share, Step, schedule, scheduled_seconds, share_out
from infsa_bench.spec import Case, Sweep
from infsa_bench.store import RECORDS, Manifest, RunWriter, Settings, is_run, load, load_manifest
from infsa_bench.sweep import run_plan
from infsa_bench.traces import TRACES, trace_path
from infsa_models.registry import MECHANISMS

COMMAND = [sys.executable, "-m", "infsa_bench"]


def fake_launcher(*traits: str) -> StartLauncher:
    return lambda device, abandonment=None: Launcher(device, fake_command_of(*traits), abandonment)


class Listener:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.cells: list[str] = []
        self.begun: list[Case] = []

    def started(self, case: Case, seconds: float, remaining_seconds: float) -> None:
        assert 0 <= seconds <= remaining_seconds
        self.begun.append(case)

    def finished(self, record: Record, remaining_seconds: float) -> None:
        self.cells.append(record.case.id)


def make_plan(
    cases: Sequence[Case],
    *,
    seconds: float | None = None,
    memory_bytes: int | None = None,
    energy: EnergyPreset | None = None,
    **options: Any,
) -> Plan:
    return Plan(
        cases=cases,
        protocol=PROTOCOLS["quick"],
        deadline=None if seconds is None else time.monotonic() + seconds,
        host_memory_bytes=memory_bytes,
        energy=energy,
        **options,
    )


def run_with_fake_worker(
    folder: Path,
    plan: Plan,
    rate: float = 1e15,
    traits: tuple[str, ...] = (),
    devices: Sequence[str] = ("cpu",),
    listener: Listener | None = None,
) -> tuple[Record, ...]:
    settings = Settings(device="cpu", protocol=plan.protocol, seed=0, time_budget_seconds=None, energy="auto")
    manifest = Manifest(
        created_utc="2026-01-01T00:00:00+00:00",
        command=("infsa-bench",),
        settings=settings,
        plan=tuple(case.id for case in plan.cases),
        environments={ENVIRONMENT.key: ENVIRONMENT},
    )
    if is_run(folder):
        manifest = dataclasses.replace(load_manifest(folder), plan=manifest.plan)
    listener = listener or Listener()
    with LocalEngine(devices, fake_launcher(*traits)) as engine, RunWriter(folder, manifest) as writer:
        todo = {case.id for case in plan.todo(writer.recorded)}
        run_plan(plan, engine, writer, Predictor({"fp32": rate}), listener)
    records = load(folder).records
    ended = [record.case.id for record in records if record.case.id in todo]
    # Several devices end in no order.
    assert (ended if len(devices) == 1 else sorted(ended)) == (
        listener.cells if len(devices) == 1 else sorted(listener.cells)
    )
    return records


def test_every_kind_of_ending_is_one_record_in_order(tmp_path: Path) -> None:
    behaviours = ["measure", "oom", "sigsegv", "sigkill", "unsupported", "exit", "measure"]
    cases = [make_case(behave=name, n=str(i)) for i, name in enumerate(behaviours)]
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases))
    assert [record.case for record in records] == cases
    kinds = [record.outcome.kind if isinstance(record.outcome, Failure) else "ok" for record in records]
    assert kinds == ["ok", "oom", "crash", "killed", "unsupported", "crash", "ok"]
    assert [len(record.attempts) for record in records] == [0, 0, 0, 2, 0, 0, 0]


def test_resuming_runs_only_what_is_missing(tmp_path: Path) -> None:
    cases = [make_case(n=str(i)) for i in range(5)]
    run_with_fake_worker(tmp_path / "run", make_plan(cases[:3]))
    before = (tmp_path / "run" / RECORDS).read_bytes()
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases))
    assert (tmp_path / "run" / RECORDS).read_bytes().startswith(before)
    assert [record.case for record in records] == cases


def test_a_cell_above_the_budget_is_skipped_with_its_prediction(tmp_path: Path) -> None:
    # An option that no formula knows of has no prediction, so the two differ in an axis. 20 GFLOP at 1 kFLOP/s: months.
    small, large = make_case(), dataclasses.replace(make_case(), resolution=384)
    plan = make_plan([small, large], seconds=30.0)
    records = run_with_fake_worker(tmp_path / "run", plan, rate=1e3)
    for record in records:
        assert isinstance(record.outcome, Failure)
        assert (record.outcome.kind, record.outcome.stage) == ("skipped", "plan")
        assert re.search(r"predicted to take .* at the least, .* left of the time budget", record.outcome.message)
        assert record.outcome.predicted_seconds is not None
        assert record.outcome.predicted_seconds > 1e6
        assert record.outcome.predicted_bytes is not None


def test_a_cell_above_sixty_percent_of_memory_is_skipped_with_its_prediction(tmp_path: Path) -> None:
    (record,) = run_with_fake_worker(tmp_path / "run", make_plan([make_case()], memory_bytes=2**28))
    assert isinstance(record.outcome, Failure)
    assert record.outcome.kind == "skipped"
    assert "more than 60% of the 256 MiB that are free" in record.outcome.message
    assert record.outcome.predicted_bytes is not None
    assert record.outcome.predicted_bytes > 0.6 * 2**28
    fits = record.outcome.predicted_bytes / 0.6 + 1
    (record,) = run_with_fake_worker(tmp_path / "again", make_plan([make_case()], memory_bytes=int(fits)))
    assert isinstance(record.outcome, Measurement)


def test_a_case_cannot_outlast_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infsa_bench.execute.launcher.GRACE_SECONDS", 0.5)
    started = time.monotonic()
    records = run_with_fake_worker(tmp_path / "run", make_plan([make_case(behave="hang")], seconds=3.0))
    assert isinstance(records[0].outcome, Failure)
    assert records[0].outcome.kind == "timeout"
    assert time.monotonic() - started < 10.0


def predicted(
    seconds: float, least_seconds: float | None = None, fixed_seconds: float = 0.0, size: int = 10
) -> Prediction:
    return Prediction(
        seconds=seconds,
        least_seconds=seconds if least_seconds is None else least_seconds,
        fixed_seconds=fixed_seconds,
        step_seconds=seconds,
        peak_bytes=size,
    )


def test_what_is_scheduled_leaves_out_what_will_be_skipped() -> None:
    plan = make_plan([], seconds=100.0, memory_bytes=1000)
    small, long, large = predicted(10.0), predicted(1000.0), predicted(10.0, size=900)
    shares = share_out(plan, [small, long, large, small], 100.0)
    assert [share is not None for share in shares] == [True, False, False, True]
    steps = [Step(case=make_case(), prediction=small, share=share) for share in shares]
    assert scheduled_seconds(steps) == 20.0


def test_without_a_budget_everybody_gets_what_is_wanted() -> None:
    plan = make_plan([], memory_bytes=1000)
    shares = share_out(plan, [predicted(10.0, 1.0), predicted(1e9), predicted(10.0, size=900)], None)
    assert shares == [Share(seconds=10.0, limit_seconds=None), Share(seconds=1e9, limit_seconds=None), None]


def test_a_budget_is_shared_out_beyond_the_least() -> None:
    plan = make_plan([], seconds=1e6)
    # Of 320 s, 20 + 40 + 60 are the least, which leaves 200 s for three; but the second wants no more than 50 in all.
    wants = [predicted(1000.0, 20.0, 5.0), predicted(50.0, 40.0, 5.0), predicted(1000.0, 60.0, 50.0)]
    first, second, third = share_out(plan, wants, 320.0)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.seconds == pytest.approx(20 + 200 / 3)
    # A limit is for warm-up and timing: building and energy are not in it.
    assert first.limit_seconds == pytest.approx(first.seconds - 5)
    assert second.seconds == 50.0
    assert second.limit_seconds == pytest.approx(40 + 200 / 3 - 5)
    # What the second leaves goes to the third, and nothing is left over.
    assert third.seconds == pytest.approx(320 - first.seconds - 50)
    assert third.limit_seconds == pytest.approx(third.seconds - 50)


def test_the_quick_get_more_than_their_least_before_the_slow_get_any() -> None:
    plan = make_plan([], seconds=1e6)
    quick, slow = predicted(10.0, 1.0, 0.5), predicted(100.0, 20.0, 0.5)
    first, second = share_out(plan, [quick, slow], 23.5)
    assert first == Share(seconds=0.5 + FIRST_SHARE_SECONDS, limit_seconds=FIRST_SHARE_SECONDS)
    assert second == Share(seconds=20.0, limit_seconds=19.5)
    # Where that is not left, the least has to do; who wants less gets no more.
    first, second = share_out(plan, [quick, slow], 22.0)
    assert first == Share(seconds=22.0 - 18.5 + 6.5, limit_seconds=21.5)
    assert second is None
    (last,) = share_out(plan, [quick], 2.0)
    assert last == Share(seconds=2.0, limit_seconds=1.5)
    (modest,) = share_out(plan, [predicted(1.5, 1.0, 0.5)], 100.0)
    assert modest == Share(seconds=1.5, limit_seconds=99.5)


def test_who_does_not_fit_by_the_least_is_left_out_and_no_one_else() -> None:
    plan = make_plan([], seconds=1e6)
    wants = [predicted(50.0, 6.0), predicted(50.0, 5.0), predicted(50.0, 4.0), predicted(50.0, 0.5)]
    shares = share_out(plan, wants, 10.5)
    assert [share is not None for share in shares] == [True, False, True, True]
    assert sum(share.seconds for share in shares if share) == pytest.approx(10.5)
    assert share_out(plan, wants, -1.0) == [None] * 4
    assert share_out(plan, [], 10.0) == []


def test_under_a_budget_passes_come_first_then_resolutions_then_the_cheapest() -> None:
    axes = {"softmax": (384, 224), "infsa-linear": (384, 224)}
    cases = [
        sample_records.make_case(mechanism=mechanism, resolution=resolution, replicate=replicate)
        for replicate in (1, 0)
        for mechanism, resolutions in axes.items()
        for resolution in resolutions
    ]
    predictor = Predictor({"fp32": 1e12})
    steps = schedule(make_plan(cases, seconds=1e6), predictor, cases)
    order = [(step.case.replicate, step.case.resolution, step.case.mechanism) for step in steps]
    # What a cell inherits from the one before it differs from pass to pass.
    names = (["infsa-linear", "softmax"], ["softmax", "infsa-linear"])
    assert order == [(p, side, name) for p in (0, 1) for side in (224, 384) for name in names[p]]
    assert [step.case for step in schedule(make_plan(cases), predictor, cases)] == cases


@pytest.mark.parametrize(("seconds", "expected"), [(None, 15.0), (2004.0, 15.0), (12.0, 5.0)])
def test_no_cell_gets_more_than_its_budget(tmp_path: Path, seconds: float | None, expected: float) -> None:
    """With a budget for all, the smaller of the two."""
    cases = [make_case(behave="echo", n=str(number)) for number in range(2)]
    plan = make_plan(cases, seconds=seconds, case_budget_seconds=15.0)
    record = run_with_fake_worker(tmp_path / "run", plan)[0]
    assert isinstance(record.outcome, Failure)
    assert decode(RunCommand, record.outcome.message).limit_seconds == pytest.approx(expected, abs=1.5)


def test_a_budget_shortens_what_is_predicted_but_not_below_the_least() -> None:
    cases = [sample_records.make_case(mechanism="softmax", resolution=side) for side in (224, 9216)]
    predictor = Predictor({"fp32": 1e12})
    small, large = schedule(make_plan(cases, case_budget_seconds=2.0), predictor, cases)
    assert small.share == Share(seconds=small.prediction.fixed_seconds + 2.0, limit_seconds=2.0)
    assert large.share == Share(seconds=large.prediction.least_seconds, limit_seconds=2.0)
    assert small.prediction.seconds > small.prediction.fixed_seconds + 2.0
    assert large.prediction.seconds > large.prediction.least_seconds


@pytest.mark.parametrize("seconds", [None, 1e6])
def test_the_budget_of_a_cell_holds_between_two_plans_as_well(seconds: float | None) -> None:
    cases = [sample_records.make_case(resolution=16 * side) for side in range(1, 301)]
    plan, predictor = make_plan(cases, seconds=seconds, case_budget_seconds=2.0), Predictor({"fp32": 1e12})
    agenda = Agenda(plan, predictor, cases, Dominance())
    steps = list(iter(agenda.next, None))
    assert len(steps) == 300
    assert {step.share.limit_seconds for step in steps if step.share} == {2.0}


def test_the_share_reaches_the_worker_and_energy_comes_on_top(tmp_path: Path) -> None:
    cases = [make_case(behave="echo", n=str(number)) for number in range(4)]
    plan = make_plan(cases, seconds=2004.0, energy=ENERGY_PRESETS["quick"])
    for number, record in enumerate(run_with_fake_worker(tmp_path / "run", plan)):
        assert isinstance(record.outcome, Failure)
        command = decode(RunCommand, record.outcome.message)
        assert (command.energy, command.share) == (ENERGY_PRESETS["quick"], TrialShare.all_of(3))
        # Nothing is used up: a share of 2000 s is halved among two, and so on; a second is for building the model.
        assert command.limit_seconds == pytest.approx(2000 / (4 - number), abs=5.0)
    run_with_fake_worker(tmp_path / "free", make_plan(cases[:1]))
    (record,) = load(tmp_path / "free").records
    assert isinstance(record.outcome, Failure)
    assert decode(RunCommand, record.outcome.message).limit_seconds is None


SECONDS_ON_TWO_CORES = {
    # An iteration at 224, 384, 512, 768 and 1024 pixels, 4L-64H, fp32.
    "softmax": (0.2, 0.93, 2.2, 11.0, 35.0),
    "linformer": (0.2, 0.63, 1.2, 2.7, 5.0),
    "performer": (0.19, 0.51, 0.95, 2.0, 3.7),
    "soft": (0.19, 0.45, 0.9, 1.7, 3.2),
    "flatten": (0.17, 0.46, 0.82, 1.7, 3.1),
    "agent": (0.2, 0.53, 1.2, 2.7, 5.0),
    "mlla": (0.18, 0.5, 0.95, 2.0, 3.7),
    "infsa-pure": (0.21, 0.93, 2.6, 13.0, 40.0),
    "infsa-linear": (0.16, 0.38, 0.72, 1.5, 2.7),
}


@pytest.mark.parametrize("flops_per_second", [4e10, 1.2e11, 4e11])
def test_four_minutes_measure_what_a_slow_machine_can(monkeypatch: pytest.MonkeyPatch, flops_per_second: float) -> None:
    """The default sweep on a CPU, on a virtual clock, timed as long as it is let."""
    resolutions = (224, 384, 512, 768, 1024)
    axes = Sweep(
        mechanisms=tuple(MECHANISMS),
        implementations=("reference",),
        configs=("4L-64H",),
        resolutions=resolutions,
        phases=("infer",),
        precisions=(),
        executions=("eager",),
        batch_sizes=(1,),
    )
    now = 8.0
    monkeypatch.setattr("infsa_bench.schedule.time", types.SimpleNamespace(monotonic=lambda: now))
    todo = list(axes.cases("cpu"))
    plan = dataclasses.replace(make_plan(todo), deadline=225.0)
    predictor = Predictor({"fp32": flops_per_second})
    measured: Counter[int] = Counter()
    while todo:
        step = schedule(plan, predictor, todo)[0]
        todo.remove(step.case)
        if step.share is None:
            continue
        assert step.share.limit_seconds is not None
        seconds = SECONDS_ON_TWO_CORES[step.case.mechanism][resolutions.index(step.case.resolution)]
        # The least is never cut short.
        now += 0.7 + max(step.share.limit_seconds, plan.protocol.least_seconds(seconds))
        assert now < 240.0
        measured[step.case.resolution] += 1
        outcome = sample_records.make_measurement([seconds], build_seconds=0.6, warmup_seconds=(seconds,))
        predictor.observe(step.case, outcome)
    assert (measured[224], measured[384], measured[512]) == (9, 9, 9)
    assert measured.total() >= 33


class CountingPredictor(Predictor):
    """Counts how often it is asked."""

    asked = 0

    def predict(self, *arguments: object) -> Prediction:  # type: ignore[override]
        self.asked += 1
        return super().predict(*arguments)  # type: ignore[arg-type]


def test_a_step_predicts_each_case_to_come_once() -> None:
    cases = [make_case(n=str(number)) for number in range(50)]
    predictor = CountingPredictor({"fp32": 1e12})
    schedule(make_plan(cases, seconds=100.0), predictor, cases)
    assert predictor.asked == 50


def test_each_replicate_has_a_fresh_worker(tmp_path: Path) -> None:
    cells = [make_case(behave="pid", n=str(number)) for number in range(2)]
    cases = [dataclasses.replace(case, replicate=replicate) for replicate in range(3) for case in cells]
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases))
    workers = [record.outcome.message for record in records if isinstance(record.outcome, Failure)]
    assert [record.case.replicate for record in records] == [0, 0, 1, 1, 2, 2]
    assert [workers[0::2], len(set(workers))] == [workers[1::2], 3]


def test_resuming_in_the_middle_of_a_replicate_and_adding_another(tmp_path: Path) -> None:
    cells = [make_case(behave="pid", n=str(number)) for number in range(2)]
    cases = [dataclasses.replace(case, replicate=replicate) for replicate in range(2) for case in cells]
    run_with_fake_worker(tmp_path / "run", make_plan(cases[:1]))
    before = (tmp_path / "run" / RECORDS).read_bytes()
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases))
    assert (tmp_path / "run" / RECORDS).read_bytes().startswith(before)
    assert [record.case for record in records] == cases
    workers = [record.outcome.message for record in records if isinstance(record.outcome, Failure)]
    assert len(set(workers)) == 3
    assert workers[2] == workers[3]


def test_traces_and_calibrations_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plan = make_plan([make_case(behave="energy", n=str(number)) for number in range(3)])
    records = run_with_fake_worker(folder, dataclasses.replace(plan, cases=plan.cases[:2]), traits=("meter",))
    assert load_manifest(folder).calibrations == (CALIBRATION, CALIBRATION_LATER)
    for record in records:
        assert isinstance(record.outcome, Measurement)
        assert record.outcome.energy.calibration == CALIBRATION
        assert len(trace_path(folder, record.case.id).read_text().splitlines()) == 1 + len(TRACE)
    run_with_fake_worker(folder, plan, traits=("meter",))
    assert load_manifest(folder).calibrations == (CALIBRATION, CALIBRATION_LATER) * 2
    assert len(list((folder / TRACES).iterdir())) == 3
    # With nothing left to measure, nothing is looked at.
    run_with_fake_worker(folder, plan, traits=("meter",))
    assert len(load_manifest(folder).calibrations) == 4


@pytest.mark.parametrize("traits", [("meter", "deaf"), ()], ids=["ends", "has no counter any more"])
def test_a_run_whose_counter_is_lost_ends_well(tmp_path: Path, traits: tuple[str, ...]) -> None:
    (record,) = run_with_fake_worker(tmp_path / "run", make_plan([make_case(behave="energy")]), traits=traits)
    assert isinstance(record.outcome, Measurement)
    assert load_manifest(tmp_path / "run").calibrations == (CALIBRATION,)


def test_without_energy_nothing_is_kept_of_it(tmp_path: Path) -> None:
    run_with_fake_worker(tmp_path / "run", make_plan([make_case(), make_case(behave="oom")]), traits=("meter",))
    assert load_manifest(tmp_path / "run").calibrations == ()
    assert not (tmp_path / "run" / TRACES).exists()


def test_a_case_lost_over_its_energy_costs_no_other(tmp_path: Path) -> None:
    cases = [make_case(behave=name, stage="energy", n=name) for name in ("energy", "sigsegv", "exit", "energy")]
    cases[3] = make_case(behave="energy", n="last")
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases), traits=("meter",))
    ended = [record.outcome.stage if isinstance(record.outcome, Failure) else "ok" for record in records]
    assert ended == ["ok", "energy", "energy", "ok"]
    assert len(list((tmp_path / "run" / TRACES).iterdir())) == 2


def test_a_full_disk_under_a_calibration_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunWriter, calibration: EnergyCalibration) -> None:
        raise OSError(28, "No space left on device")

    plan = make_plan([make_case(behave="energy")])
    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "add_calibration", full)
        with pytest.raises(SweepStoppedError, match="No space left"):
            run_with_fake_worker(tmp_path / "run", plan)
    assert len(run_with_fake_worker(tmp_path / "run", plan)) == 1


def test_a_full_disk_stops_the_sweep_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [make_case(n=str(i)) for i in range(3)]
    append = RunWriter.append

    def until_full(self: RunWriter, record: Record, trace: Sequence[TracePoint] = ()) -> None:
        if record.case == cases[2]:
            raise OSError(28, "No space left on device")
        append(self, record, trace)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "append", until_full)
        with pytest.raises(SweepStoppedError, match="No space left"):
            run_with_fake_worker(tmp_path / "run", make_plan(cases))
    assert len(load(tmp_path / "run").records) == 2
    assert len(run_with_fake_worker(tmp_path / "run", make_plan(cases))) == 3


def worker_processes(out: Path) -> list[int]:
    """Process ids of workers whose parent runs a sweep into ``out``."""
    listing = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    parents = {pid for pid, _, arguments in rows if str(out) in arguments}
    return [int(pid) for pid, parent, arguments in rows if parent in parents and "execute.worker" in arguments]


def wait_for_records(out: Path, count: int, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (out / RECORDS).exists() and (out / RECORDS).read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{out} did not reach {count} records")


def test_all_nine_killed_midway_and_resumed_end_once_each(tmp_path: Path) -> None:
    """The whole process group is killed; the worker, in a session of its own, must go as well."""
    out = tmp_path / "results" / "nine"
    words = ["sweep", "--impl", "fast", "--res", "32", "--device", "cpu", "--warmup", "1", "--iterations", "2"]
    words += ["--out", str(out), "--resume"]
    first = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    wait_for_records(out, 3)
    workers = worker_processes(out)
    assert workers
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert all(wait_until_gone(worker) for worker in workers)
    kept, peaks = (out / RECORDS).read_bytes(), (out / PEAKS).read_bytes()

    second = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "9 cells planned" in second.stdout
    whole = kept[: kept.rfind(b"\n") + 1]
    assert (out / RECORDS).read_bytes().startswith(whole)
    records = load(out).records
    assert Counter(record.case.mechanism for record in records) == dict.fromkeys(MECHANISMS, 1)
    for record in records:
        assert isinstance(record.outcome, Measurement), record
        # The machine that runs the tests may be busy.
        assert set(record.outcome.flags) <= {"shared"}
        assert len(record.outcome.latencies_seconds) == 2
        assert record.outcome.peak_memory_bytes is not None
        assert record.outcome.peak_memory_bytes > 0.9 * record.outcome.model_bytes
        # Counted by the real worker; set against what that had measured first, once.
        assert record.outcome.operations is not None
        assert record.outcome.operations.operator_bytes > record.outcome.model_bytes / 2
    assert (out / PEAKS).read_bytes() == peaks
    reports = tmp_path / "reports" / "nine"
    with (reports / "table.csv").open() as table:
        for row in csv.DictReader(table):
            assert 0 < float(row["roofline_fraction"]) < 100
            assert row["datasheet_fraction"] == ""
    figures = ("latency_vs_resolution", "dashboard", "memory_vs_tokens", "oom_frontier", "roofline")
    drawn = {f"{stem}.{kind}" for stem in figures for kind in ("png", "svg")}
    assert {file.name for file in reports.iterdir()} == {"table.md", "table.csv", "index.html", "report.md", *drawn}


def test_ctrl_c_keeps_what_is_recorded_and_says_how_to_go_on(tmp_path: Path) -> None:
    """In a real terminal, where the signal goes to the whole foreground group."""
    out = tmp_path / "results" / "interrupted"
    words = ["sweep", "--impl", "reference", "--res", "32", "--mechanisms", "softmax,infsa-linear", "--device", "cpu"]
    words += ["--iterations", "100000", "--warmup", "0", "--time-budget", "none", "--no-peaks", "--out", str(out)]
    pid, terminal = pty.fork()
    if pid == 0:
        # A shell that runs the tests in the background has it ignored, and that is inherited.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execv(sys.executable, [*COMMAND, *words])
    shown = b""
    while b"softmax.reference" not in shown:
        shown += os.read(terminal, 4096)
    time.sleep(0.5)
    workers = worker_processes(out)
    assert workers
    os.write(terminal, b"\x03")
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "interrupted; what is recorded is kept" in text
    assert "--resume" in text
    assert "Traceback" not in text
    assert all(wait_until_gone(worker) for worker in workers)
    assert load(out).records == ()


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["--phase", "train", "--dtype", "bf16,fp32,amp-bf16"], {"unsupported", "ok"}),
        (["--phase", "infer", "--dtype", "bf16,amp-fp16"], {"ok"}),
    ],
)
def test_phases_precisions_and_modes(tmp_path: Path, words: list[str], kinds: set[str]) -> None:
    out = tmp_path / "results" / "run"
    words = [*words, "--mechanisms", "infsa-linear", "--res", "32", "--device", "cpu", "--warmup", "1"]
    words += ["--iterations", "2", "--no-peaks"]
    done = subprocess.run([*COMMAND, "sweep", *words, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = [record.outcome for record in load(out).records]
    assert {outcome.kind if isinstance(outcome, Failure) else "ok" for outcome in outcomes} == kinds
    assert all(set(outcome.flags) <= {"shared"} for outcome in outcomes if isinstance(outcome, Measurement))
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            assert outcome.message == "training keeps float32 parameters: use fp32 or amp-bf16"


def ladder(**axes: Any) -> list[Case]:
    return [sample_records.make_case(resolution=side, **axes) for side in (224, 384, 512, 768)]


def test_what_is_larger_than_one_that_ran_out_of_memory_is_skipped(tmp_path: Path) -> None:
    """In every replicate; another mechanism goes its own way, and at the size itself everyone is tried."""
    quadratic = [case for replicate in (0, 1) for case in ladder(mechanism="softmax", replicate=replicate)]
    cases = [*quadratic, sample_records.make_case(mechanism="mlla", resolution=384)]
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases), traits=("fits=384",))
    kinds = [record.outcome.kind if isinstance(record.outcome, Failure) else "ok" for record in records]
    assert kinds == [*["ok", "ok", "oom", "skipped"] * 2, "ok"]
    for record in records:
        if isinstance(record.outcome, Failure) and record.outcome.kind == "skipped":
            assert record.outcome.dominated_by == quadratic[2].id
            assert record.outcome.message.startswith(f"dominated by {quadratic[2].id}")
            assert record.outcome.stage == "plan"


def test_without_pruning_every_size_is_tried(tmp_path: Path) -> None:
    records = run_with_fake_worker(tmp_path / "run", make_plan(ladder(), is_pruned=False), traits=("hole=384",))
    kinds = [record.outcome.kind if isinstance(record.outcome, Failure) else "ok" for record in records]
    assert kinds == ["ok", "oom", "ok", "ok"]


def test_what_dominates_is_remembered_when_a_run_goes_on(tmp_path: Path) -> None:
    cases = ladder()
    run_with_fake_worker(tmp_path / "run", make_plan(cases[:3]), traits=("fits=384",))
    # On a larger machine: the record stands, and with it what it says.
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases))
    assert isinstance(records[3].outcome, Failure)
    assert records[3].outcome.dominated_by == cases[2].id


def test_failures_are_measured_again_where_that_is_asked_for(tmp_path: Path) -> None:
    behaviours = ["measure", "sigsegv", "oom", "exit"]
    cases = [make_case(behave=name) for name in behaviours]
    run_with_fake_worker(tmp_path / "run", make_plan(cases))
    before = (tmp_path / "run" / RECORDS).read_bytes()
    run_with_fake_worker(tmp_path / "run", make_plan(cases, retried=frozenset({"crash", "timeout"})))
    content = (tmp_path / "run" / RECORDS).read_bytes()
    assert content.startswith(before)
    run = load(tmp_path / "run")
    assert [record.case for record in run.records] == cases
    assert run.superseded == 2
    assert len(content.splitlines()) == 6


def test_a_retried_case_no_longer_dominates(tmp_path: Path) -> None:
    cases = ladder()
    run_with_fake_worker(tmp_path / "run", make_plan(cases), traits=("fits=384",))
    plan = make_plan(cases, retried=frozenset({"oom", "skipped"}))
    records = run_with_fake_worker(tmp_path / "run", plan)
    assert all(isinstance(record.outcome, Measurement) for record in records)
    assert load(tmp_path / "run").superseded == 2


def test_what_was_measured_beside_another_sweep_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, False, True, True])
    cases = [make_case(n=str(number)) for number in range(3)]
    monkeypatch.setattr(DeviceLock, "is_shared", lambda self: next(answers))
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases))
    flags = [record.outcome.flags for record in records if isinstance(record.outcome, Measurement)]
    assert flags == [(), ("shared",), ("shared",)]


def test_a_case_has_the_time_that_was_asked_for(tmp_path: Path) -> None:
    plan = make_plan([make_case(behave="hang")], case_timeout_seconds=0.5)
    started = time.monotonic()
    (record,) = run_with_fake_worker(tmp_path / "run", plan)
    assert isinstance(record.outcome, Failure)
    assert record.outcome.kind == "timeout"
    assert time.monotonic() - started < 10.0


@pytest.mark.parametrize(
    ("rate", "case_timeout_seconds", "timeout_seconds", "silence_seconds"),
    [
        # 20 GFLOP in no time: the least that any case has.
        (1e15, None, 60.0, 60.0),
        (1e15, 5.0, 5.0, 60.0),
        (1e15, math.inf, math.inf, 60.0),
    ],
)
def test_how_long_a_case_is_waited_for(
    tmp_path: Path, rate: float, case_timeout_seconds: float | None, timeout_seconds: float, silence_seconds: float
) -> None:
    seen = waited_for(tmp_path, rate, case_timeout_seconds)
    assert seen.timeout_seconds == pytest.approx(timeout_seconds, rel=1e-3)
    assert seen.silence_seconds == silence_seconds


def test_slow_cases_are_waited_for_longer_and_their_steps_too(tmp_path: Path) -> None:
    """At 1 GFLOP/s an iteration takes some 20 s, and the whole case several times that."""
    seen = waited_for(tmp_path, 1e9, None)
    prediction = Predictor({"fp32": 1e9}).predict(sample_records.make_case(), PROTOCOLS["quick"])
    assert 15 < prediction.step_seconds < 30
    assert seen.silence_seconds == pytest.approx(20 * prediction.step_seconds)
    assert seen.timeout_seconds == pytest.approx(20 * prediction.seconds)
    assert seen.timeout_seconds > 3 * seen.silence_seconds


def waited_for(folder: Path, rate: float, case_timeout_seconds: float | None) -> Patience:
    seen: list[Patience] = []

    class Listening(Launcher):
        def run(self, case: Case, protocol: Protocol, patience: Patience, **options: Any) -> CaseRun:
            seen.append(patience)
            return super().run(case, protocol, patience, **options)

    plan = make_plan([sample_records.make_case()], case_timeout_seconds=case_timeout_seconds)
    manifest = sample_records.make_manifest()
    engine = LocalEngine(["cpu"], lambda device, abandonment=None: Listening(device, fake_command_of(), abandonment))
    with engine, RunWriter(folder / "run", manifest) as writer:
        run_plan(plan, engine, writer, Predictor({"fp32": rate}), Listener())
    (patience,) = seen
    return patience
