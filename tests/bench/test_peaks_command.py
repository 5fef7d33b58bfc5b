"""``infsa-bench peaks``, and what a sweep does about peaks, from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_worker import PEAKS
from test_cli import CommandLine, fake_launcher

# The fixture of the command line is that of its own tests.
from test_cli import run as run

from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.peaks import load_peaks
from infsa_bench.store import RunWriter, load, load_manifest

SWEEP = ["sweep", "--res", "32", "--mechanisms", "softmax", "--device", "cpu", "--out", "results/x"]
MAXRES = ["maxres", "--mechanism", "softmax", "--max-res", "128", "--device", "cpu", "--out", "results/x"]
NOT_MEASURED = "peaks: not measured"


@pytest.fixture
def run_fake(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    use(monkeypatch)
    return run


def use(monkeypatch: pytest.MonkeyPatch, *traits: str) -> None:
    for command in ("sweep", "peaks", "maxres"):
        monkeypatch.setattr(f"infsa_bench.commands.{command}.Launcher", fake_launcher(*traits))


def test_rates_beside_a_data_sheet_that_nobody_knows(run_fake: CommandLine) -> None:
    result = run_fake("peaks", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[1] == "fp32  137 GFLOP/s (4096 x 1024 x 4096; spread 6.25 %)  unknown"
    assert lines[-1] == "data sheet: unknown"
    assert list(run_fake.folder.iterdir()) == []


def test_the_real_worker_measures_this_processor(run: CommandLine) -> None:
    result = run("peaks", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    assert re.search(r"^fp32  [0-9.]+ [MGT]FLOP/s \(4096 x 1024 x (4096|1024); spread [0-9.]+ %\) ", result.out, re.M)
    assert re.search(r"^copy  [0-9.]+ [MG]B/s \(copy of 256 MiB; spread", result.out, re.M)
    assert "bf16" not in result.out


@pytest.mark.parametrize("device", ["tpu", "cuda:x", ""])
def test_no_device_is_bad_input(run: CommandLine, device: str) -> None:
    result = run("peaks", "--device", device)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "unknown device" in result.err


@pytest.mark.parametrize(
    ("traits", "code", "text"),
    [
        (("refused",), 2, "cannot be used: by design"),
        (("peakless",), 5, "the peaks cannot be measured: RuntimeError: by design"),
        (("dead-peaks",), 5, "measuring the peaks ended the worker"),
    ],
)
def test_what_goes_wrong_is_one_line(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, traits: tuple[str, ...], code: int, text: str
) -> None:
    use(monkeypatch, *traits)
    result = run("peaks", "--device", "cpu")
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1)
    assert text in result.err


def test_a_sweep_measures_them_first_and_once(run_fake: CommandLine) -> None:
    result = run_fake(*SWEEP)
    assert result.code == 0, result.err
    said = "Peaks of cpu, measured 2026-01-02T03:04:05+00:00: fp32 137 GFLOP/s, copy 17.2 GB/s; data sheet: unknown"
    assert result.out.index(said) < result.out.index("[1/1]")
    folder = run_fake.folder / "results/x"
    assert load(folder).peaks == PEAKS
    table = (run_fake.folder / "reports/x/table.md").read_text()
    # 2^30 bytes at 2^34 bytes/s, of half a second.
    assert "| 8.59 GFLOP/s | 12.5 % |" in table
    assert f"- {said}" in table
    before = (folder / "peaks.json").stat()
    resumed = run_fake(*SWEEP, "--mechanisms", "softmax,mlla", "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.out.index("[2/2]") < resumed.out.index("Peaks of cpu")
    after = (folder / "peaks.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_run_without_them_is_fine_and_may_get_them_later(run_fake: CommandLine) -> None:
    result = run_fake(*SWEEP, "--no-peaks")
    assert result.code == 0, result.err
    folder = run_fake.folder / "results/x"
    assert not (folder / "peaks.json").exists()
    table = run_fake.folder / "reports/x/table.md"
    assert "roofline" not in table.read_text()
    # Nothing is left to do, and nothing is measured for it.
    assert run_fake(*SWEEP, "--resume").code == 0
    assert not (folder / "peaks.json").exists()
    stored = run_fake("peaks", "--device", "cpu", "--out", "results/x")
    assert (stored.code, stored.err) == (0, "")
    assert "peaks: results/x/peaks.json" in stored.out
    assert load_peaks(folder) == PEAKS
    assert run_fake("report", "results/x").code == 0
    assert "| roofline |" in table.read_text()
    again = run_fake("peaks", "--device", "cpu", "--out", "results/x")
    assert (again.code, again.out) == (2, "")
    assert "has its peaks.json already" in again.err


@pytest.mark.parametrize("trait", ["peakless", "dead-peaks"])
def test_peaks_that_cannot_be_measured_do_not_cost_a_sweep(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, trait: str
) -> None:
    use(monkeypatch, trait)
    result = run(*SWEEP)
    assert result.code == 0, result.err
    assert f"{NOT_MEASURED}: " in result.out
    assert load(run.folder / "results/x").peaks is None
    assert "1 cells planned, 1 recorded: 1 ok" in result.out


def test_a_short_time_budget_is_not_spent_on_them(run_fake: CommandLine) -> None:
    result = run_fake(*SWEEP, "--time-budget", "60s")
    assert result.code == 0, result.err
    assert f"{NOT_MEASURED}: they would take too much of the time budget" in result.out


def test_beside_another_sweep_they_are_not_measured(run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceLock, "is_shared", lambda self: True)
    assert f"{NOT_MEASURED}: another sweep uses the device" in run_fake(*SWEEP).out


def test_they_are_those_of_the_device_and_not_of_the_one_emulated(
    run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_fake(*SWEEP, "--memory-limit", "1GiB")
    assert result.code == 0, result.err
    assert load(run_fake.folder / "results/x").peaks == PEAKS


def test_a_search_measures_none(run_fake: CommandLine) -> None:
    assert run_fake(*MAXRES).code == 0
    assert not (run_fake.folder / "results/x/peaks.json").exists()
    result = run_fake("peaks", "--device", "cpu", "--out", "results/x")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "holds a search of maxres" in result.err


def test_a_corrupted_file_is_named_and_nothing_is_measured(run_fake: CommandLine) -> None:
    assert run_fake(*SWEEP).code == 0
    file = run_fake.folder / "results/x/peaks.json"
    raw = json.loads(file.read_text())
    raw["copied_bytes_per_second"]["per_second"] = -1
    file.write_text(json.dumps(raw))
    resume = [*SWEEP, "--mechanisms", "softmax,mlla", "--resume"]
    for words in (["report", "results/x"], resume, ["peaks", "--device", "cpu", "--out", "results/x"]):
        result = run_fake(*words)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "results/x/peaks.json: " in result.err
        assert "a measured rate is above zero" in result.err
    assert len(load_manifest(run_fake.folder / "results/x").plan) == 1


@pytest.mark.parametrize("place", ["none", "folder", "file"])
def test_what_is_no_run_is_left_alone(run_fake: CommandLine, place: str) -> None:
    path = run_fake.folder / "mine"
    if place == "folder":
        path.mkdir()
    elif place == "file":
        path.write_text("mine")
    result = run_fake("peaks", "--device", "cpu", "--out", "mine")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "mine" in result.err
    assert not (path / "peaks.json").exists()


def test_a_run_of_another_device_does_not_get_this_ones(run_fake: CommandLine) -> None:
    assert run_fake(*SWEEP, "--no-peaks").code == 0
    result = run_fake("peaks", "--device", "cuda:0", "--out", "results/x")
    assert (result.code, result.out) == (2, "")
    assert "was not measured on this device, cuda:0 (fake processor)" in result.err
    assert load_peaks(Path("results/x")) is None


def test_a_torn_run_is_left_as_it_is(run_fake: CommandLine) -> None:
    assert run_fake(*SWEEP, "--no-peaks").code == 0
    records = run_fake.folder / "results/x/records.jsonl"
    records.write_bytes(records.read_bytes()[:-30])
    before = records.read_bytes()
    result = run_fake("peaks", "--device", "cpu", "--out", "results/x")
    assert (result.code, result.out) == (2, "")
    assert "the last line is torn" in result.err
    assert records.read_bytes() == before


def test_a_run_that_is_being_written_is_locked(run_fake: CommandLine) -> None:
    assert run_fake(*SWEEP, "--no-peaks").code == 0
    path = run_fake.folder / "results/x"
    with RunWriter(path, load_manifest(path)):
        result = run_fake("peaks", "--device", "cpu", "--out", "results/x")
    assert (result.code, result.out) == (2, "")
    assert "is being written by another process" in result.err


def test_a_disk_that_is_full_ends_the_sweep_before_its_cases(
    run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infsa_bench.store.write_peaks", full)
    result = run_fake(*SWEEP)
    assert (result.code, result.err.count("\n")) == (5, 1)
    assert "cannot write to results/x: [Errno 28] No space left on device" in result.err
