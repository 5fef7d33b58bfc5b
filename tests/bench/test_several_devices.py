"""``sweep`` on several devices from the command line; the workers are real processes that measure nothing."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_worker import ENVIRONMENT
from test_cli import CommandLine, fake_launcher, planned, run
from test_local_engine import locks

from infsa_bench.analyze.run import load_run
from infsa_bench.commands.options import parse_devices
from infsa_bench.commands.resuming import refuse_other_hardware
from infsa_bench.errors import SpecError
from infsa_bench.execute.cores import own_cores
from infsa_bench.machine import Environment
from infsa_bench.record import Measurement
from infsa_bench.store import RECORDS, load, load_manifest

__all__ = ["locks", "run"]

REPORTED = [
    "sweep",
    "--mechanisms",
    "softmax,mlla,soft",
    "--res",
    "32,48,64",
    "--config",
    "4L-64H",
    "--out",
    "results/x",
]
WORDS = [*REPORTED, "--no-report"]


@pytest.fixture
def fake(run: CommandLine, monkeypatch: pytest.MonkeyPatch, locks: Path) -> CommandLine:
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher("gpus=4"))
    return run


def test_a_list_of_devices_is_one_run(fake: CommandLine) -> None:
    result = fake(*REPORTED, "--device", "cuda:0,cuda:1,cuda:2", "--dtype", "fp32")
    assert result.code == 0, result.err
    assert "places: cuda:0, cuda:1, cuda:2; each worker has 1 core and 1 thread" in result.out
    assert "9 cells planned, 9 recorded: 9 ok" in result.out
    stored = load(fake.folder / "results/x")
    assert stored.manifest.settings.device == "cuda:0,cuda:1,cuda:2"
    assert {found.device for found in stored.manifest.environments.values()} == {"cuda:0", "cuda:1", "cuda:2"}
    assert all(isinstance(record.outcome, Measurement) for record in stored.records)
    assert len(stored.records) == len((fake.folder / "results/x" / RECORDS).read_text().splitlines()) == 9
    # They are alike: one table, its mechanisms beside each other.
    rows = load_run(fake.folder / "results/x").rows
    assert len({row.environment for row in rows}) == 1
    assert all(row.roofline_fraction is not None for row in rows)
    table = (fake.folder / "reports/x/table.md").read_text()
    assert ", environment " not in table
    assert table.count("- Environment ") == 1
    assert "- Also measured on 2 like it, so that what two cells differ by may be what two devices do: cuda:" in table


def test_all_is_every_gpu(fake: CommandLine) -> None:
    result = fake(*WORDS, "--device", "all", "--dry-run")
    assert len(planned(result)) == 9
    assert "places: cuda:0, cuda:1, cuda:2, cuda:3; each worker" in result.out
    assert not (fake.folder / "results").exists()


def test_an_index_is_a_number() -> None:
    assert parse_devices("cuda:00,cuda:1") == ("cuda:0", "cuda:1")
    assert parse_devices("cuda:01") == ("cuda:1",)


def test_a_dry_run_counts_on_all_devices(fake: CommandLine) -> None:
    def predicted(device: str) -> float:
        out = fake("sweep", "--res", "1024,2048", "--device", device, "--dry-run").out
        found = re.search(r"predicted ([0-9.]+) (s|min)(?: ([0-9.]+) s)? from", out)
        assert found is not None
        return float(found[1]) * (60 if found[2] == "min" else 1) + float(found[3] or 0)

    assert predicted("cuda:0,cuda:1") == pytest.approx(predicted("cuda:0") / 2, rel=0.1)


def test_replicates_on_several_devices_are_one_row_and_flagged(fake: CommandLine) -> None:
    result = fake(*WORDS, "--device", "cuda:0,cuda:1", "--replicates", "4", "--res", "32")
    assert result.code == 0, result.err
    rows = load_run(fake.folder / "results/x").rows
    assert [row.processes for row in rows] == [4] * 3
    environments = {}
    for record in load(fake.folder / "results/x").records:
        environments.setdefault(record.case.cell, set()).add(record.environment)
    for row in rows:
        assert ("several_devices" in row.flags) == (len(environments[row.case.cell]) == 2)


def test_a_run_goes_on_with_other_devices_of_its_kind(fake: CommandLine) -> None:
    assert fake(*WORDS, "--device", "cuda:0,cuda:1", "--res", "32").code == 0
    result = fake(*WORDS, "--device", "cuda:2", "--resume")
    assert result.code == 0, result.err
    assert "9 cells planned, 3 of them recorded already" in result.out
    manifest = load_manifest(fake.folder / "results/x")
    assert {found.device for found in manifest.environments.values()} == {"cuda:0", "cuda:1", "cuda:2"}
    assert len({row.environment for row in load_run(fake.folder / "results/x").rows}) == 1


@pytest.mark.skipif(len(own_cores()) < 2, reason="needs two cores")
def test_a_run_goes_on_with_another_number_of_devices(
    fake: CommandLine, monkeypatch: pytest.MonkeyPatch, locks: Path
) -> None:
    """Each worker then has another share of the cores, and yet what they measure is one row."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher("gpus=4", "cores"))
    words = [*WORDS, "--res", "32", "--replicates"]
    assert fake(*words, "1", "--device", "cuda:0").code == 0
    result = fake(*words, "2", "--device", "cuda:0,cuda:1", "--resume")
    assert result.code == 0, result.err
    environments = load_manifest(fake.folder / "results/x").environments.values()
    assert len({found.cpu_count for found in environments}) == 2
    rows = load_run(fake.folder / "results/x").rows
    assert [row.processes for row in rows] == [2] * 3
    assert all("several_devices" in row.flags for row in rows)


@pytest.mark.parametrize("devices", ["cuda:1", "cuda:1,cuda:2"])
def test_a_run_does_not_go_on_with_other_hardware(
    fake: CommandLine, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    assert fake(*WORDS, "--device", "cuda:0").code == 0
    before = (fake.folder / "results/x" / RECORDS).read_bytes()
    traits = ("model=cuda:1:NVIDIA L4", "model=cuda:2:NVIDIA L4")
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher(*traits))
    result = fake(*WORDS, "--device", devices, "--resume", "--replicates", "2")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "holds a run on other hardware than cuda:1 (NVIDIA L4): it differs in device;" in result.err
    assert (fake.folder / "results/x" / RECORDS).read_bytes() == before
    # Not on a processor either.
    result = fake(*WORDS, "--device", "cpu", "--resume")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "another device" in result.err or "other hardware" in result.err


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({}, ""),
        ({"device": "cuda:3", "device_uuid": "GPU-3"}, ""),
        ({"torch_version": "3", "git_commit": "1" * 40}, ""),
        ({"device_memory_bytes": 2**34 + 2**20}, ""),
        ({"device_memory_bytes": 2**35}, "device memory"),
        ({"device_name": "NVIDIA L4", "device_memory_bytes": 2**33}, "device, device memory"),
    ],
    ids=str,
)
def test_what_is_other_hardware(fake: CommandLine, changes: dict[str, object], differing: str) -> None:
    assert fake(*WORDS, "--device", "cuda:0", "--res", "32").code == 0
    folder = Path("results/x")
    manifest = load_manifest(folder)
    environment = dataclasses.replace(ENVIRONMENT, device="cuda:0")
    assert environment.key in manifest.environments
    found = dataclasses.replace(environment, **changes)  # type: ignore[arg-type]
    if not differing:
        refuse_other_hardware(folder, manifest, found)
        return
    with pytest.raises(SpecError, match=f"it differs in {differing};"):
        refuse_other_hardware(folder, manifest, found)


def test_threads_are_hardware_on_a_processor_only() -> None:
    from infsa_bench.analyze.comparability import differing_hardware

    def with_threads(environment: Environment) -> Environment:
        return dataclasses.replace(environment, torch_threads=7)

    assert differing_hardware(ENVIRONMENT, with_threads(ENVIRONMENT)) == ["threads"]
    gpu = dataclasses.replace(ENVIRONMENT, device="cuda:0")
    assert differing_hardware(gpu, with_threads(gpu)) == []


def test_unlike_devices_end_the_command_before_anything_is_written(
    fake: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher("model=cuda:1:NVIDIA L4"))
    result = fake(*WORDS, "--device", "cuda:0,cuda:1")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "cuda:0 and cuda:1 are not alike (they differ in device name)" in result.err
    assert not (fake.folder / "results").exists()


@pytest.mark.skipif(len(own_cores()) < 2, reason="needs two cores")
def test_an_interrupt_keeps_what_is_recorded_and_resuming_adds_the_rest(tmp_path: Path) -> None:
    """Real workers, and a real interrupt."""
    words = ["sweep", "--device", "cpu,cpu", "--mechanisms", "softmax,mlla", "--impl", "reference", "--res", "32,48,64"]
    words += ["--iterations", "1", "--warmup", "1", "--energy", "none", "--no-peaks", "--no-report"]
    words += ["--time-budget", "none", "--out", "results/x"]
    command = [sys.executable, "-m", "infsa_bench", *words]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    records = tmp_path / "results/x" / RECORDS
    end = time.monotonic() + 120
    while not (records.exists() and records.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(first.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "interrupted; what is recorded is kept. To go on: " in out
    assert len(children) >= 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    kept = records.read_text().splitlines()
    assert 0 < len(kept) < 6
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert records.read_text().splitlines()[: len(kept)] == kept
    stored = load(tmp_path / "results/x")
    assert len(stored.records) == 6
    assert stored.superseded == 0
    assert all(isinstance(record.outcome, Measurement) for record in stored.records)
