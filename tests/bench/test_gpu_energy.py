"""Energy on a real GPU, against plainer ways to read the same counter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infsa_bench.energy_plan import EnergyPreset, TrialShare
from infsa_bench.execute.instruments import Instruments, open_instruments
from infsa_bench.measure.environment import find_gpu
from infsa_bench.measure.latency import time_saturated, warm_up
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Measurement
from infsa_bench.store import load

pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]

GPU = torch.device("cuda:0")


@pytest.fixture(scope="module")
def instruments() -> Iterator[Instruments]:
    torch.zeros(1, device=GPU)
    opened = open_instruments(GPU)
    if opened.energy_source != "nvml_counter":
        pytest.skip(f"needs a GPU with an energy counter: {opened.no_energy or opened.energy_source}")
    assert opened.meter is not None
    opened.meter.calibrate()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def multiply() -> Callable[[], Tensor]:
    left, right = (torch.randn(8192, 8192, device=GPU, dtype=torch.bfloat16) for _ in range(2))
    warm_up(lambda: left @ right, PROTOCOLS["quick"], GPU)
    # At its power limit a board changes its clocks until it is warm.
    end = time.monotonic() + 20
    while time.monotonic() < end:
        left @ right
        torch.cuda.synchronize()
    return lambda: left @ right


def saturated_seconds(call: Callable[[], Tensor]) -> float:
    return statistics.median(time_saturated(call, PROTOCOLS["quick"], GPU).seconds)


@pytest.mark.soak
def test_ten_seconds_against_two_plain_readings(instruments: Instruments, multiply: Callable[[], Tensor]) -> None:
    """The board runs before and after both: what differs is how the window's ends are found."""
    seconds = saturated_seconds(multiply)
    assert instruments.meter is not None
    preset = EnergyPreset(name="long", trials=2, window_seconds=10.0, segments=1)
    reading = instruments.meter.read(
        instruments.load(multiply, seconds), seconds, preset, TrialShare.all_of(preset.trials)
    ).reading
    assert reading.trials
    ours = statistics.mean(trial.joules_per_iteration for trial in reading.trials)
    handle = pynvml.nvmlDeviceGetHandleByUUID(find_gpu(GPU).facts.uuid)
    for _ in range(200):
        multiply()
    torch.cuda.synchronize()
    begin, before, count = time.perf_counter(), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 0
    while time.perf_counter() - begin < 10.0:
        for _ in range(20):
            multiply()
        torch.cuda.synchronize()
        count += 20
    plain = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1e3 / count
    assert ours == pytest.approx(plain, rel=0.02)


@pytest.mark.soak
def test_watching_does_not_slow_the_work(instruments: Instruments, multiply: Callable[[], Tensor]) -> None:
    assert instruments.meter is not None
    alone, watched = [], []
    for _ in range(3):
        alone.append(saturated_seconds(multiply))
        with instruments.meter.observing():
            watched.append(saturated_seconds(multiply))
    assert statistics.median(watched) == pytest.approx(statistics.median(alone), rel=0.01)


def test_the_driver_sees_the_gpu_that_torch_uses() -> None:
    facts = find_gpu(GPU).facts
    assert facts.uuid == f"GPU-{torch.cuda.get_device_properties(GPU).uuid}"
    assert facts.name == torch.cuda.get_device_properties(GPU).name
    assert not facts.is_fake


@pytest.mark.soak
def test_doctor_checks_itself() -> None:
    command = [sys.executable, "-m", "infsa_bench", "doctor", "--device", "cuda:0", "--selfcheck"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.soak
def test_a_sweep_measures_energy(tmp_path: Path) -> None:
    out = tmp_path / "results" / "run"
    command = [sys.executable, "-m", "infsa_bench", "sweep", "--device", "cuda:0", "--out", str(out)]
    command += ["--res", "224,1024", "--config", "4L-64H", "--mechanisms", "softmax,infsa-linear"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = load(out)
    for record in run.records:
        assert isinstance(record.outcome, Measurement), record
        energy = record.outcome.energy
        assert energy.status in ("measured", "measured_low_confidence"), energy.reason
        assert energy.calibration is not None
        assert record.outcome.state_before is not None
        assert record.outcome.nvml_process_bytes is None or record.outcome.nvml_process_bytes > 2**28
        assert record.outcome.launch_bound is not None
    assert len(run.manifest.calibrations) == 2
    assert len(list((out / "traces").iterdir())) == len(run.records)
