"""The launcher against a fake worker: a real process, real pipes, real signals; only torch is left out."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sample_records
from fake_worker import CALIBRATION, CALIBRATION_LATER, FINDINGS, FIT, MEASUREMENT, TRACE

from infsa_bench.codec import decode
from infsa_bench.energy_plan import ENERGY_PRESETS, EnergyPreset, TrialShare
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.execute import launcher as launcher_module
from infsa_bench.execute import process
from infsa_bench.execute.launcher import MAX_ATTEMPTS, MAX_STARTS, CaseRun, Launcher, Patience
from infsa_bench.execute.messages import RunCommand
from infsa_bench.execute.process import WorkerCommand, environment_for_python, worker_command
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Failure, Measurement
from infsa_bench.spec import Case

PATIENCE = Patience(timeout_seconds=30.0, silence_seconds=30.0)
FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


def fake_command(device: str, message_fd: int, parent_pid: int) -> list[str]:
    return [sys.executable, str(FAKE_WORKER), device, str(message_fd), str(parent_pid)]


def fake_command_of(*traits: str) -> WorkerCommand:
    """Return how to start a fake worker on a machine that has these traits."""
    return lambda device, message_fd, parent_pid: [*fake_command(device, message_fd, parent_pid), *traits]


def make_case(**options: str) -> Case:
    """Return a case whose options tell the fake worker what to do."""
    return sample_records.make_case(options=tuple(options.items()))


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    with Launcher("cpu", fake_command) as launcher:
        yield launcher


def run(
    launcher: Launcher, timeout_seconds: float = 30.0, energy: EnergyPreset | None = None, **options: str
) -> CaseRun:
    patience = Patience(timeout_seconds=timeout_seconds, silence_seconds=30.0)
    return launcher.run(make_case(**options), PROTOCOLS["quick"], patience, limit_seconds=None, energy=energy)


def echo(launcher: Launcher, energy: EnergyPreset | None = None) -> RunCommand:
    """Return the command that reaches the worker."""
    outcome = run(launcher, energy=energy, behave="echo").outcome
    assert isinstance(outcome, Failure)
    return decode(RunCommand, outcome.message)


def pid(launcher: Launcher) -> int:
    outcome = run(launcher, behave="pid").outcome
    assert isinstance(outcome, Failure)
    return int(outcome.message)


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(process_id: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(process_id) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(process_id)


def test_a_measurement_comes_back_and_the_worker_is_used_again(launcher: Launcher) -> None:
    first = pid(launcher)
    assert run(launcher) == CaseRun(outcome=MEASUREMENT, attempts=())
    assert pid(launcher) == first


def test_a_worker_that_prints_a_lot_does_not_disturb_the_messages(launcher: Launcher) -> None:
    assert run(launcher, behave="print").outcome == MEASUREMENT


def test_a_failure_is_reported_and_the_worker_replaced(launcher: Launcher) -> None:
    first = pid(launcher)
    outcome = run(launcher, behave="oom").outcome
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.stage, outcome.requested_bytes) == ("oom", "build", 7)
    assert wait_until_gone(first)
    assert pid(launcher) != first


@pytest.mark.parametrize(
    ("behave", "kind", "in_message", "exit_code"),
    [
        ("sigsegv", "crash", "SIGSEGV", -signal.SIGSEGV),
        ("exit", "crash", "the last words", 3),
        ("garbage", "crash", "unreadable message", None),
        ("half", "crash", "exit code 0", 0),
    ],
)
def test_a_worker_that_breaks_costs_one_case(
    launcher: Launcher, behave: str, kind: str, in_message: str, exit_code: int | None
) -> None:
    ended = run(launcher, behave=behave)
    assert isinstance(ended.outcome, Failure)
    assert (ended.outcome.kind, ended.outcome.stage, ended.attempts) == (kind, "build", ())
    assert in_message in ended.outcome.message
    assert exit_code is None or ended.outcome.exit_code == exit_code
    assert run(launcher).outcome == MEASUREMENT


def test_a_killed_worker_is_tried_again_and_then_given_up(launcher: Launcher) -> None:
    ended = run(launcher, behave="sigkill")
    assert isinstance(ended.outcome, Failure)
    assert (ended.outcome.kind, ended.outcome.exit_code) == ("killed", -signal.SIGKILL)
    assert [attempt.stage for attempt in ended.attempts] == ["build"] * (MAX_ATTEMPTS - 1)
    assert run(launcher).outcome == MEASUREMENT


def test_a_case_that_is_killed_twice_is_measured_at_the_third_try(launcher: Launcher, tmp_path: Path) -> None:
    ended = run(launcher, behave="sigkill-twice", file=str(tmp_path / "deaths"))
    assert ended.outcome == MEASUREMENT
    assert len(ended.attempts) == 2


def test_a_worker_killed_between_cases_is_replaced(launcher: Launcher) -> None:
    first = pid(launcher)
    os.kill(first, signal.SIGKILL)
    assert wait_until_gone(first)
    ended = run(launcher)
    assert ended.outcome == MEASUREMENT
    assert len(ended.attempts) == 1


@pytest.mark.parametrize("behave", ["hang", "hang-on"])
def test_a_hanging_worker_times_out_and_is_gone(launcher: Launcher, behave: str) -> None:
    first = pid(launcher)
    outcome = run(launcher, timeout_seconds=0.5, behave=behave).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.stage) == ("timeout", "build")
    assert wait_until_gone(first)
    assert run(launcher).outcome == MEASUREMENT


def test_a_worker_that_the_kernel_killed_for_memory(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = itertools.count()
    monkeypatch.setattr(process, "memory_kills", lambda: next(kills))
    ended = run(launcher, behave="sigkill")
    assert isinstance(ended.outcome, Failure)
    assert (ended.outcome.kind, ended.attempts) == ("host_oom", ())


def test_what_the_kernel_killed_before_a_case_is_not_its_doing(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(launcher)
    monkeypatch.setattr(process, "memory_kills", lambda: 10**6)
    ended = run(launcher, behave="sigkill")
    assert isinstance(ended.outcome, Failure)
    assert ended.outcome.kind == "killed"


@pytest.mark.parametrize(
    ("behave", "timeout_seconds", "kind"), [("hang", 0.5, "timeout"), ("exit", 30.0, "crash"), ("oom", 30.0, "oom")]
)
def test_what_goes_wrong_while_energy_is_watched_costs_the_case(
    launcher: Launcher, behave: str, timeout_seconds: float, kind: str
) -> None:
    ended = run(launcher, timeout_seconds=timeout_seconds, behave=behave, stage="energy")
    assert isinstance(ended.outcome, Failure)
    assert (ended.outcome.kind, ended.outcome.stage) == (kind, "energy")
    assert (ended.trace, ended.calibration) == ((), None)
    assert run(launcher).outcome == MEASUREMENT


def test_a_renewed_launcher_has_a_fresh_worker_but_keeps_one_that_has_run_nothing(launcher: Launcher) -> None:
    idle = launcher._worker
    launcher.check(("os:system",))
    launcher.renew()
    assert launcher._worker is idle
    first = pid(launcher)
    launcher.renew()
    assert wait_until_gone(first)
    launcher.renew()
    second = pid(launcher)
    assert second != first
    # A failed case has ended the worker already.
    run(launcher, behave="oom")
    launcher.renew()
    assert pid(launcher) not in (first, second)


def test_a_worker_is_told_how_to_watch_energy(launcher: Launcher) -> None:
    command = echo(launcher)
    assert (command.energy, command.share, command.calibration) == (None, None, None)
    command = echo(launcher, ENERGY_PRESETS["full"])
    assert (command.energy, command.share) == (ENERGY_PRESETS["full"], TrialShare.all_of(5))


def test_trials_are_spread_over_the_replicates(launcher: Launcher) -> None:
    trials = []
    for replicate in range(3):
        case = dataclasses.replace(make_case(behave="echo"), replicate=replicate)
        outcome = launcher.run(
            case, PROTOCOLS["full"], PATIENCE, limit_seconds=1.5, energy=ENERGY_PRESETS["full"]
        ).outcome
        assert isinstance(outcome, Failure)
        command = decode(RunCommand, outcome.message)
        assert (command.case, command.protocol, command.limit_seconds) == (case, PROTOCOLS["full"], 1.5)
        trials.append(command.share.count)
    assert trials == [2, 2, 1]


def test_trace_and_calibration_come_back(launcher: Launcher) -> None:
    ended = run(launcher, energy=ENERGY_PRESETS["quick"], behave="energy")
    assert isinstance(ended.outcome, Measurement)
    assert len(ended.outcome.energy.trials) == 3
    assert (ended.trace, ended.calibration) == (TRACE, CALIBRATION)


def test_the_first_calibration_of_a_run_is_handed_on(launcher: Launcher) -> None:
    assert run(launcher).calibration is None
    first = run(launcher, behave="energy", watts="61").calibration
    assert first == dataclasses.replace(CALIBRATION, idle_watts=61.0)
    assert echo(launcher).calibration == first
    launcher.renew()
    assert echo(launcher).calibration == first
    run(launcher, behave="sigsegv")
    assert echo(launcher).calibration == first
    assert run(launcher, behave="energy", watts="62").calibration == first
    # Also of a case that has no energy to tell.
    assert run(launcher).calibration == first


def test_the_counter_is_looked_at_once_more_only_where_it_was_seen() -> None:
    with Launcher("cpu", fake_command_of("meter")) as launcher:
        assert launcher.calibrate() is None
        run(launcher, behave="energy")
        assert launcher.calibrate() == CALIBRATION_LATER
        assert run(launcher).outcome == MEASUREMENT
        run(launcher, behave="oom")
        # The last case of a sweep is often the one that took its worker along: then a fresh one looks.
        assert launcher._worker is None
        assert launcher.calibrate() == CALIBRATION_LATER


@pytest.mark.parametrize("trait", ["deaf", "mute"])
def test_a_worker_lost_over_its_second_calibration_is_no_error(trait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Launcher("cpu", fake_command_of("meter", trait)) as launcher:
        first = pid(launcher)
        run(launcher, behave="energy")
        monkeypatch.setattr(process, "START_SECONDS", 0.5)
        assert launcher.calibrate() is None
        assert wait_until_gone(first)
        monkeypatch.undo()
        assert run(launcher).outcome == MEASUREMENT


def test_diagnoses(launcher: Launcher) -> None:
    assert launcher.diagnose(selfcheck=False) == FINDINGS
    *usual, check = launcher.diagnose(selfcheck=True)
    assert tuple(usual) == FINDINGS
    assert (check.name, check.verdict) == ("linearity", "pass")
    assert run(launcher).outcome == MEASUREMENT


@pytest.mark.parametrize("selfcheck", [False, True])
def test_a_diagnosis_that_ends_the_worker(selfcheck: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Launcher("cpu", fake_command_of("deaf")) as launcher,
        pytest.raises(SweepStoppedError, match="the diagnosis ended the worker: exit code 3"),
    ):
        launcher.diagnose(selfcheck)
    with Launcher("cpu", fake_command_of("mute")) as launcher:
        monkeypatch.setattr(process, "SELFCHECK_SECONDS" if selfcheck else "START_SECONDS", 0.2)
        with pytest.raises(SweepStoppedError, match="the diagnosis ended the worker: no answer"):
            launcher.diagnose(selfcheck)


def test_closing_ends_the_worker() -> None:
    with Launcher("cpu", fake_command) as launcher:
        worker = pid(launcher)
    assert wait_until_gone(worker)


def test_a_worker_that_does_not_start_stops_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str, message_fd: int, parent_pid: int) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no such thing')"]

    with pytest.raises(SweepStoppedError, match="no such thing"):
        Launcher("cpu", broken)

    def silent(device: str, message_fd: int, parent_pid: int) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(60)"]

    monkeypatch.setattr(process, "START_SECONDS", 0.5)
    with pytest.raises(SweepStoppedError, match="no answer"):
        Launcher("cpu", silent)


def test_the_real_worker_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Its standard input stays open in another process, so that only the kernel can tell it."""
    script = """
import subprocess
from infsa_bench.execute.launcher import Launcher, Patience
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.spec import Case
launcher = Launcher("cpu")
stdin = launcher._worker._process.stdin.fileno()
holder = subprocess.Popen(["sleep", "30"], pass_fds=(stdin,), stdout=subprocess.DEVNULL)
print(launcher._worker._process.pid, holder.pid, flush=True)
case = Case(mechanism="softmax", implementation="reference", config="4L-64H", resolution=32, batch_size=1,
            precision="fp32", phase="infer", execution="eager")
protocol = PROTOCOLS["paper"].customized(warmup=0, iterations=10**9, replicates=None)
launcher.run(case, protocol, Patience(timeout_seconds=600, silence_seconds=600), limit_seconds=None)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    worker, holder = map(int, parent.stdout.readline().split())
    time.sleep(1.0)
    assert is_alive(worker)
    parent.kill()
    parent.wait()
    try:
        assert wait_until_gone(worker)
    finally:
        os.kill(holder, signal.SIGKILL)


def test_signs_of_life_are_waited_for_and_silence_is_not(launcher: Launcher) -> None:
    """A case that goes on is left alone until its time is over; one that has fallen silent is given up before."""
    alive = make_case(behave="beat", seconds="0.8", stage="timing")
    patience = Patience(timeout_seconds=30.0, silence_seconds=0.4)
    assert launcher.run(alive, PROTOCOLS["quick"], patience, limit_seconds=None).outcome == MEASUREMENT
    silent = make_case(behave="hang", stage="timing")
    started = time.monotonic()
    outcome = launcher.run(silent, PROTOCOLS["quick"], patience, limit_seconds=None).outcome
    assert time.monotonic() - started < 10.0
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.stage) == ("timeout", "timing")
    assert "no sign of life for 0 s" in outcome.message
    for_ever = make_case(behave="beat", seconds="3600")
    patience = Patience(timeout_seconds=0.6, silence_seconds=0.4)
    outcome = launcher.run(for_ever, PROTOCOLS["quick"], patience, limit_seconds=None).outcome
    assert isinstance(outcome, Failure)
    assert outcome.message == "not finished after 1 s; the worker was killed"


def test_signals_are_named(launcher: Launcher) -> None:
    for behave, name in (("sigsegv", "SIGSEGV"), ("sigkill", "SIGKILL")):
        outcome = run(launcher, behave=behave).outcome
        assert isinstance(outcome, Failure)
        assert outcome.signal == name
    outcome = run(launcher, behave="exit").outcome
    assert isinstance(outcome, Failure)
    assert outcome.signal is None


@pytest.mark.parametrize("behave", ["hang", "garbage"])
def test_a_worker_that_cannot_be_killed_leaves_its_case_a_record(behave: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a driver hangs: signals are sent and nothing happens."""
    with Launcher("cpu", fake_command) as launcher:
        worker = pid(launcher)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess.Popen, "send_signal", lambda self, number: None)
            patch.setattr(process, "TERMINATE_SECONDS", 0.1)
            patch.setattr(process, "UNRESPONSIVE_SECONDS", 0.1)
            ended = run(launcher, timeout_seconds=0.5, behave=behave)
        assert isinstance(ended.outcome, Failure)
        assert ended.outcome.kind == ("timeout" if behave == "hang" else "crash")
        assert ended.stopped is not None
        assert f"worker {worker} cannot be killed: its device no longer answers" in str(ended.stopped)
        os.kill(worker, signal.SIGKILL)


def test_probes(launcher: Launcher) -> None:
    first = pid(launcher)
    case = make_case()
    assert launcher.probe(case, PATIENCE, is_fresh=False) == CaseRun(outcome=FIT, attempts=())
    assert pid(launcher) == first
    assert launcher.probe(case, PATIENCE, is_fresh=True).outcome == FIT
    assert pid(launcher) != first
    killed = launcher.probe(make_case(behave="sigkill"), PATIENCE, is_fresh=False)
    assert isinstance(killed.outcome, Failure)
    assert (killed.outcome.kind, len(killed.attempts)) == ("killed", MAX_ATTEMPTS - 1)


def test_every_worker_is_limited_and_the_first_one_tries_it_out() -> None:
    with Launcher("cpu", fake_command_of("leaky")) as launcher:
        assert run(launcher).outcome == MEASUREMENT
        with pytest.raises(SpecError, match="a memory limit of 1000 bytes cannot be had: it leaks"):
            launcher.limit_memory(1000)
    with Launcher("cpu", fake_command) as launcher:
        launcher.limit_memory(1000)
        assert launcher._worker is None
        for _ in range(2):
            outcome = run(launcher, behave="limit").outcome
            assert isinstance(outcome, Failure)
            assert outcome.message == "1000"
            launcher.renew()
    with (
        Launcher("cpu", fake_command_of("deaf")) as launcher,
        pytest.raises(SpecError, match="limiting the memory ended the worker: exit code 3"),
    ):
        launcher.limit_memory(1000)


def test_a_worker_killed_while_it_starts_is_replaced(tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"

    def mortal(times: int) -> WorkerCommand:
        script = (
            f"import os, sys; from pathlib import Path; deaths = Path({str(deaths)!r}); deaths.open('a').write('x');"
            f"len(deaths.read_text()) <= {times} and os.kill(os.getpid(), 9);"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        return lambda *words: [sys.executable, "-c", script, *fake_command(*words)[1:]]

    with Launcher("cpu", mortal(MAX_STARTS - 1)) as launcher:
        assert run(launcher).outcome == MEASUREMENT
    deaths.unlink()
    with pytest.raises(SweepStoppedError, match="did not start: exit code -9"):
        Launcher("cpu", mortal(MAX_STARTS))


def test_starting_a_worker_is_nobody_s_time(tmp_path: Path) -> None:
    """A case after a failure, one in a fresh process, and a try after a kill each have all of their time."""
    with Launcher("cpu", fake_command_of("slow")) as launcher:
        patience = Patience(timeout_seconds=0.8, silence_seconds=30.0)

        def ended(**options: str) -> CaseRun:
            return launcher.run(make_case(**options), PROTOCOLS["quick"], patience, limit_seconds=None)

        run(launcher, behave="oom")
        assert ended(sleep="0.2").outcome == MEASUREMENT
        launcher.renew()
        assert ended(sleep="0.2").outcome == MEASUREMENT
        assert launcher.probe(make_case(sleep="0.2"), patience, is_fresh=True).outcome == FIT
        tried = ended(behave="sigkill-twice", file=str(tmp_path / "deaths"), sleep="0.2")
        assert (tried.outcome, len(tried.attempts)) == (MEASUREMENT, 2)


def test_after_the_end_of_a_sweep_there_is_a_grace_and_no_further_try(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_module, "GRACE_SECONDS", 0.5)
    over = Patience(timeout_seconds=30.0, silence_seconds=30.0, until=time.monotonic() - 10)
    quick = launcher.run(make_case(sleep="0.1"), PROTOCOLS["quick"], over, limit_seconds=None)
    assert quick.outcome == MEASUREMENT
    killed = launcher.run(make_case(behave="sigkill"), PROTOCOLS["quick"], over, limit_seconds=None)
    assert killed.attempts == ()
    slow = launcher.run(make_case(behave="hang"), PROTOCOLS["quick"], over, limit_seconds=None)
    assert isinstance(slow.outcome, Failure)
    assert slow.outcome.kind == "timeout"


def test_a_worker_killed_while_it_is_limited_is_replaced(tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    with Launcher("cpu", fake_command_of(f"mortal={deaths}")) as launcher:
        launcher.limit_memory(1000)
        deaths.write_text("x" * 2)
        outcome = run(launcher, behave="limit").outcome
        assert isinstance(outcome, Failure)
        assert outcome.message == "1000"
        assert deaths.read_text() == ""


def test_a_worker_is_asked_to_end_before_it_is_made_to(tmp_path: Path) -> None:
    """And whatever it started itself ends with it."""
    ending, child = tmp_path / "ending", tmp_path / "child"
    with Launcher("cpu", fake_command) as launcher:
        outcome = run(launcher, timeout_seconds=0.5, behave="end", file=str(ending), child=str(child)).outcome
    assert isinstance(outcome, Failure)
    assert outcome.kind == "timeout"
    assert ending.read_text() == "asked to"
    assert wait_until_gone(int(child.read_text()))


def test_a_worker_that_never_ends_a_line_is_given_up(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_LINE_BYTES", 2**16)
    outcome = run(launcher, behave="endless").outcome
    assert isinstance(outcome, Failure)
    assert outcome.kind == "crash"
    assert run(launcher).outcome == MEASUREMENT


def test_a_worker_imports_what_its_parent_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What PYTHONPATH names comes before the folder that we are in: two builds differ in that alone."""
    for folder in (tmp_path, tmp_path / "base"):
        (folder / "twice").mkdir(parents=True)
        (folder / "twice" / "__init__.py").write_text(f"PLACE = {str(folder)!r}")
    code = "import sys, twice; print(twice.PLACE)"
    monkeypatch.chdir(tmp_path)
    for path, expected in (("base", tmp_path / "base"), ("", tmp_path)):
        monkeypatch.setenv("PYTHONPATH", path)
        words = [sys.executable, "-P", "-c", code]
        done = subprocess.run(words, env=environment_for_python(), capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(expected)
    assert worker_command("cpu", 3, 1)[1] == "-P"
