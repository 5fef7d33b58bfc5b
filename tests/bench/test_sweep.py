"""Whole sweeps: what is planned ends as records, whatever is killed on the way. Real processes throughout."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_worker import ENVIRONMENT
from test_launcher import fake_command, make_case, wait_until_gone

from infsa_bench.analyze.predict import Prediction, Predictor
from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute.launcher import Launcher
from infsa_bench.record import Failure, Measurement, Record
from infsa_bench.spec import PROTOCOLS, Case
from infsa_bench.store import RECORDS, Manifest, RunWriter, Settings, load
from infsa_bench.sweep import Plan, predicted_seconds, run_plan
from infsa_models.registry import MECHANISMS

COMMAND = [sys.executable, "-m", "infsa_bench"]


class Listener:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.cells: list[str] = []

    def started(self, case: Case, prediction: Prediction, remaining_seconds: float) -> None:
        assert remaining_seconds >= 0

    def finished(self, record: Record) -> None:
        self.cells.append(record.case.id)


def make_plan(cases: list[Case], *, seconds: float | None = None, memory_bytes: int | None = None) -> Plan:
    return Plan(
        cases=cases,
        protocol=PROTOCOLS["quick"],
        deadline=None if seconds is None else time.monotonic() + seconds,
        host_memory_bytes=memory_bytes,
    )


def run_with_fake_worker(folder: Path, plan: Plan, rate: float = 1e15) -> tuple[Record, ...]:
    settings = Settings(device="cpu", protocol=plan.protocol, seed=0, time_budget_seconds=None)
    manifest = Manifest(
        created_utc="2026-01-01T00:00:00+00:00",
        command=("infsa-bench",),
        settings=settings,
        plan=tuple(case.id for case in plan.cases),
        environments={ENVIRONMENT.key: ENVIRONMENT},
    )
    listener = Listener()
    with Launcher("cpu", fake_command) as launcher, RunWriter(folder, manifest) as writer:
        run_plan(plan, launcher, writer, Predictor({"fp32": rate}), listener)
        finished_before = writer.finished
    records = load(folder).records
    assert [record.case.id for record in records if record.case.id not in finished_before] == listener.cells
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
    small, large = make_case(), make_case(n="1")
    # 20 GFLOP at 1 kFLOP/s: the first case is predicted to take months.
    plan = make_plan([small, large], seconds=30.0)
    records = run_with_fake_worker(tmp_path / "run", plan, rate=1e3)
    for record in records:
        assert isinstance(record.outcome, Failure)
        assert (record.outcome.kind, record.outcome.stage) == ("skipped", "plan")
        assert "left of the time budget" in record.outcome.message
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
    monkeypatch.setattr("infsa_bench.sweep.GRACE_SECONDS", 0.5)
    started = time.monotonic()
    records = run_with_fake_worker(tmp_path / "run", make_plan([make_case(behave="hang")], seconds=3.0))
    assert isinstance(records[0].outcome, Failure)
    assert records[0].outcome.kind == "timeout"
    assert time.monotonic() - started < 10.0


def test_the_prediction_of_a_sweep_leaves_out_what_will_be_skipped() -> None:
    plan = make_plan([], seconds=100.0, memory_bytes=1000)
    small, long, large = ((10.0, 10), (1000.0, 10), (10.0, 900))
    predictions = [Prediction(seconds=seconds, peak_bytes=size) for seconds, size in (small, long, large, small)]
    assert predicted_seconds(plan, predictions) == 20.0


def test_a_full_disk_stops_the_sweep_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [make_case(n=str(i)) for i in range(3)]
    append = RunWriter.append

    def until_full(self: RunWriter, record: Record) -> None:
        if record.case == cases[2]:
            raise OSError(28, "No space left on device")
        append(self, record)

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
    words = ["sweep", "--res", "32", "--device", "cpu", "--iterations", "2", "--out", str(out), "--resume"]
    first = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    wait_for_records(out, 3)
    workers = worker_processes(out)
    assert workers
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert all(wait_until_gone(worker) for worker in workers)
    kept = (out / RECORDS).read_bytes()

    second = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "9 cells planned" in second.stdout
    whole = kept[: kept.rfind(b"\n") + 1]
    assert (out / RECORDS).read_bytes().startswith(whole)
    records = load(out).records
    assert Counter(record.case.mechanism for record in records) == dict.fromkeys(MECHANISMS, 1)
    for record in records:
        assert isinstance(record.outcome, Measurement), record
        assert record.outcome.flags == ()
        assert len(record.outcome.latencies_seconds) == 2
        assert record.outcome.peak_memory_bytes is not None
        assert record.outcome.peak_memory_bytes > 0.9 * record.outcome.model_bytes
    reports = tmp_path / "reports" / "nine"
    assert {file.name for file in reports.iterdir()} == {"table.md", "table.csv", "latency_vs_resolution.png"}


def test_ctrl_c_keeps_what_is_recorded_and_says_how_to_go_on(tmp_path: Path) -> None:
    """In a real terminal, where the signal goes to the whole foreground group."""
    out = tmp_path / "results" / "interrupted"
    words = ["sweep", "--res", "32", "--mechanisms", "softmax,infsa-linear", "--device", "cpu"]
    words += ["--iterations", "100000", "--warmup", "0", "--time-budget", "none", "--out", str(out)]
    pid, terminal = pty.fork()
    if pid == 0:
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
    words = [*words, "--mechanisms", "infsa-linear", "--res", "32", "--device", "cpu", "--iterations", "2"]
    done = subprocess.run([*COMMAND, "sweep", *words, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = [record.outcome for record in load(out).records]
    assert {outcome.kind if isinstance(outcome, Failure) else "ok" for outcome in outcomes} == kinds
    assert all(not outcome.flags for outcome in outcomes if isinstance(outcome, Measurement))
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            assert outcome.message == "training keeps float32 parameters: use fp32 or amp-bf16"
