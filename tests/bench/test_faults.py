"""Whatever happens to worker, parent or disk, every planned case ends as exactly one record of the right kind.

Real processes that really die. Only the worker is a stand-in, which does what a case asks of it; what a real one does
under a memory limit is at the end.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from test_launcher import make_case, wait_until_gone
from test_sweep import make_plan, run_with_fake_worker

from infsa_bench.analyze.max_resolution import summarize_search
from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute import process
from infsa_bench.record import Failure, Record, Stage
from infsa_bench.spec import Case
from infsa_bench.store import RECORDS, load

STAGES: tuple[Stage, ...] = tuple(stage for stage in get_args(Stage) if stage != "plan")


def kinds(records: Sequence[Record]) -> list[str]:
    return [record.outcome.kind if isinstance(record.outcome, Failure) else "ok" for record in records]


@pytest.mark.parametrize("stage", STAGES)
def test_every_fault_at_every_stage(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs its own case, and that one says what it was and where; between them, cases are measured as ever."""
    expected = {
        "oom": "oom",
        "host_oom": "host_oom",
        "sigsegv": "crash",
        "sigkill": "killed",
        "exception": "error",
        "garbage": "crash",
        "half": "crash",
        "exit": "crash",
        "hang": "timeout",
    }
    cases = []
    for number, behave in enumerate(expected):
        options = {"n": str(number), "stage": stage}
        cases += [make_case(behave=behave, **options), make_case(behave="measure", **options)]
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases, case_timeout_seconds=1.5))
    assert [record.case for record in records] == cases
    assert kinds(records) == [kind for name in expected.values() for kind in (name, "ok")]
    for record in records:
        if isinstance(record.outcome, Failure):
            behave = dict(record.case.options)["behave"]
            assert record.outcome.stage == stage
            assert record.outcome.signal == {"sigsegv": "SIGSEGV", "sigkill": "SIGKILL"}.get(behave)
            assert record.outcome.exception == ("ZeroDivisionError" if behave == "exception" else None)
            assert len(record.attempts) == (2 if behave == "sigkill" else 0)


def test_a_worker_that_cannot_be_killed_ends_the_sweep_after_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a driver hangs: signals are sent and nothing happens."""
    sent: list[int] = []
    real = subprocess.Popen.send_signal
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "send_signal", lambda self, number: sent.append(self.pid))
        patch.setattr(process, "TERMINATE_SECONDS", 0.1)
        patch.setattr(process, "UNRESPONSIVE_SECONDS", 0.1)
        plan = make_plan([make_case(behave="hang"), make_case(n="1")], case_timeout_seconds=0.5)
        with pytest.raises(SweepStoppedError, match="its device no longer answers"):
            run_with_fake_worker(tmp_path / "run", plan)
    assert real is subprocess.Popen.send_signal
    os.kill(sent[0], signal.SIGKILL)
    assert kinds(load(tmp_path / "run").records) == ["timeout"]
    # The case that was not reached is run when somebody goes on.
    assert kinds(run_with_fake_worker(tmp_path / "run", plan)) == ["timeout", "ok"]


SWEEP = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from test_faults import storm_cases
from test_sweep import make_plan, run_with_fake_worker
run_with_fake_worker(Path({run!r}), make_plan(storm_cases()))
"""


def storm_cases() -> list[Case]:
    """60 cases that take a moment each."""
    return [make_case(n=f"{number:02}", sleep="0.15") for number in range(60)]


def strike(process_id: int) -> bool:
    try:
        os.kill(process_id, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def workers_of(parent_pid: int) -> list[int]:
    children = Path(f"/proc/{parent_pid}/task/{parent_pid}/children")
    try:
        return [int(pid) for pid in children.read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize(
    "kills", [pytest.param(6, id="6-kills"), pytest.param(50, id="50-kills", marks=pytest.mark.soak)]
)
def test_a_storm_of_kills(tmp_path: Path, kills: int) -> None:
    """SIGKILL for worker or parent at random moments; after each of the parent's, the run is resumed."""
    run, chance = tmp_path / "run", random.Random(20261125)
    script = SWEEP.format(folder=str(Path(__file__).parent), run=str(run))
    seen: set[int] = set()
    left = kills
    while True:
        with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as parent:
            while left and parent.poll() is None:
                time.sleep(chance.uniform(0.0, 0.2))
                workers = workers_of(parent.pid)
                seen.update(workers)
                # While it starts, which takes most of its time, only now and then.
                target = chance.choice([parent.pid, *workers, *workers] if workers else [0] * 40 + [parent.pid])
                if target and strike(target):
                    left -= 1
            _, errors = parent.communicate(timeout=120)
        if parent.returncode == 0:
            break
        # A worker that is killed at every start ends the sweep; it is resumed like any other.
        is_given_up = errors.strip().endswith(b"did not start: exit code -9")
        assert parent.returncode == -signal.SIGKILL or is_given_up, errors.decode()
    assert left == 0
    assert all(wait_until_gone(worker) for worker in seen)
    content = (run / RECORDS).read_bytes()
    assert content.endswith(b"\n")
    records = load(run).records
    assert Counter(record.case.id for record in records) == {case.id: 1 for case in storm_cases()}
    assert len(content.splitlines()) == len(records)
    undisturbed = run_with_fake_worker(tmp_path / "undisturbed", make_plan(storm_cases()))
    for record, other in zip(records, undisturbed, strict=True):
        assert record.case == other.case
        if record.outcome != other.outcome:
            assert isinstance(record.outcome, Failure)
            assert (record.outcome.kind, len(record.attempts)) == ("killed", 2)


def test_a_real_worker_runs_out_of_host_memory(tmp_path: Path) -> None:
    """Under a limit: the small size fits, the next does not, and the largest is not tried. The sweep ends as ever."""
    out = tmp_path / "results" / "run"
    command = [
        sys.executable,
        "-m",
        "infsa_bench",
        "sweep",
        "--device",
        "cpu",
        "--impl",
        "reference",
        "--out",
        str(out),
        "--energy",
        "none",
    ]
    command += ["--no-peaks"]
    command += ["--res", "224,768,1024", "--mechanisms", "softmax", "--memory-limit", "700MiB"]
    done = subprocess.run([*command, "--warmup", "0", "--iterations", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = load(out).records
    assert kinds(records) == ["ok", "host_oom", "skipped"]
    failure = records[1].outcome
    assert isinstance(failure, Failure)
    assert (failure.cause, failure.stage) == ("allocation", "timing")
    assert failure.free_bytes is not None
    assert failure.free_bytes < 700 * 2**20
    assert failure.allocated_bytes is not None
    assert failure.allocated_bytes > 200 * 2**20
    # The matrix of all pairs, or half of it.
    assert failure.requested_bytes == 64 * 2305**2 * 4
    text = " ".join(done.stdout.split())
    assert "700 MiB of memory emulated" in text
    assert "3 cells planned, 3 recorded: 1 ok, 1 host_oom, 1 skipped" in text


@pytest.mark.soak
def test_the_largest_image_under_a_real_limit(tmp_path: Path) -> None:
    """Softmax writes the matrix of all pairs, infsa-linear none: more than three times the side fits."""
    out = tmp_path / "results" / "run"
    command = [
        sys.executable,
        "-m",
        "infsa_bench",
        "maxres",
        "--device",
        "cpu",
        "--memory-limit",
        "2GiB",
    ]
    command += ["--mechanism", "softmax,infsa-linear", "--impl", "reference", "--config", "4L-64H", "--step", "64"]
    started = time.monotonic()
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 720
    run = load(out)
    assert run.manifest.search is not None
    softmax, linear = summarize_search(run.manifest.search, run.records)
    assert softmax.result.is_finished
    assert softmax.result.limit == linear.result.limit == "memory"
    assert softmax.result.largest_ok in (640, 704)
    assert linear.result.largest_ok is not None
    assert linear.result.largest_ok >= 3 * softmax.result.largest_ok
