"""One case from its model to its measurement: a real model on this processor, its energy on a fake board."""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_nvml import FakeNvml
from sample_records import make_case
from stand_in import StandIn
from torch import Tensor, nn

from infsa_bench.analyze.energy import pool_energy
from infsa_bench.codec import decode, encode
from infsa_bench.energy_plan import EnergyPreset
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute import measured_case, workload
from infsa_bench.execute.instruments import Instruments, open_instruments
from infsa_bench.execute.messages import RunCommand
from infsa_bench.execute.stages import BEAT_SECONDS
from infsa_bench.execute.worker import run_case
from infsa_bench.measure.energy.clock import MonotonicClock
from infsa_bench.measure.energy.counter import NvmlCounter
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.energy.observer import Sample
from infsa_bench.measure.energy.observing_process import ProcessObserver
from infsa_bench.measure.energy.rapl import Rapl
from infsa_bench.measure.memory import PeakMemory
from infsa_bench.measure.nvml import Gpu
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import EnergyCalibration, Measurement

CPU = torch.device("cpu")
CASE = make_case(mechanism="infsa-linear", resolution=32)
PROTOCOL = PROTOCOLS["quick"].customized(warmup=1, iterations=5, replicates=None)
CALIBRATION = EnergyCalibration(
    source="nvml_counter",
    scope="gpu",
    period_seconds=0.02,
    period_p95_seconds=0.02,
    step_joules=0.5,
    call_seconds=1e-5,
    rise_seconds=0.0,
    idle_watts=60.0,
    idle_seconds=10.0,
    temperature_celsius=40,
)


REAL_MODELS = ("test_energy_state_and_trace_of_a_case", "test_a_machine_without_energy")


class Little(StandIn, nn.Module):
    """Stands in for the ViT where it is not about the model."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(2, 3)))


@pytest.fixture(autouse=True)
def _little_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.name.startswith(REAL_MODELS):
        monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: Little())


def command(**changes: object) -> RunCommand:
    return RunCommand(**{"case": CASE, "protocol": PROTOCOL, "limit_seconds": None} | changes)  # type: ignore[arg-type]


def measured(run: RunCommand, instruments: Instruments) -> Measurement:
    finished = run_case(run, instruments, lambda message: None)
    assert isinstance(finished.outcome, Measurement)
    return finished.outcome


@pytest.fixture
def on_fake_board(fake_nvml: FakeNvml, fake_nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Instruments:
    """This processor, watched by a fake board whose counter moves in real time at 250 W."""
    fake_nvml.reset(virtual=False)
    board = fake_nvml.device(0)
    board.period_ns = board.window_ns = 20_000_000
    board.idle_watts = 250.0
    for name, value in fake_nvml.environment(fake_nvml_library).items():
        monkeypatch.setenv(name, value)
    clock = MonotonicClock()
    gpu = Gpu.find(board.uuid, None)
    observer = ProcessObserver(gpu, clock)
    meter = EnergyMeter([("nvml_counter", NvmlCounter(gpu, clock, observer))], clock, gpu=gpu, observer=observer)
    return Instruments(
        device=CPU,
        peak_memory=PeakMemory(CPU),
        gpu=gpu,
        meter=meter,
        energy_source="nvml_counter",
        no_energy=None,
    )


def test_energy_state_and_trace_of_a_case(on_fake_board: Instruments) -> None:
    """250 W for as long as an iteration takes: joules per image and time of the same windows agree."""
    preset = EnergyPreset(name="brief", trials=2, window_seconds=0.5, segments=1)
    stages: list[str] = []
    finished = run_case(
        command(energy=preset, calibration=CALIBRATION),
        on_fake_board,
        lambda message: stages.append(getattr(message, "stage", "")),
    )
    on_fake_board.close()
    measurement = finished.outcome
    assert isinstance(measurement, Measurement)
    # Each once or, as a sign of life, again.
    assert [stage for stage, _ in itertools.groupby(stages)] == ["build", "warm-up", "timing", "energy"]
    assert finished.calibration == CALIBRATION
    reading = measurement.energy
    # On a busy machine twice as many, because the two differ.
    assert len(reading.trials) in (2, 4)
    summary = pool_energy([reading], batch_size=1)
    # The bias is what the reading itself says: on a busy machine its edges are less sharp.
    assert reading.relative_bias is not None
    for trial in reading.trials:
        (window,) = trial.windows
        assert window.joules / window.seconds == pytest.approx(250.0, rel=reading.relative_bias + 0.001), window
    assert summary.average_power_watts == pytest.approx(250.0, rel=reading.relative_bias + 0.001)
    seconds = [window.seconds / window.iterations for trial in reading.trials for window in trial.windows]
    expected = 250.0 * statistics.mean(seconds)
    assert summary.joules_per_image == pytest.approx(expected, rel=reading.relative_bias + 0.001)
    assert {"build", "warm-up", "latency", "settle", "window"} <= measurement.stage_seconds.keys()
    assert {point.power_watts for point in finished.trace} == {250.0}
    assert measurement.state_before is not None
    assert measurement.state_before.sm_clock_mhz == 1980
    during = measurement.state_during
    assert during is not None
    assert during.samples >= 2
    assert (during.sm_clock_mhz, during.temperature_celsius) == (1980.0, 40)
    assert (during.event_reasons, during.power_capped_fraction) == ((), 0.0)
    assert "throttled" not in measurement.flags
    # What the worker sends is what the parent reads.
    assert decode(Measurement, encode(measurement)) == measurement


@pytest.fixture
def powercap(tmp_path: Path) -> Iterator[Path]:
    """A package whose counter rises by 80 W in real time, as Linux shows it."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    (zone / "energy_uj").write_text(f"{0:020d}\n")
    over = threading.Event()

    def rise() -> None:
        begin = time.monotonic()
        with (zone / "energy_uj").open("r+b", buffering=0) as counter:
            while not over.wait(0.001):
                # Of the same length always: a reader never sees half of it.
                os.pwrite(counter.fileno(), f"{round(80e6 * (time.monotonic() - begin)):020d}".encode(), 0)

    thread = threading.Thread(target=rise)
    thread.start()
    yield zone.parent
    over.set()
    thread.join()


def test_energy_of_a_processor(powercap: Path) -> None:
    clock = MonotonicClock()
    meter = EnergyMeter([("rapl", Rapl(clock, powercap))], clock)
    instruments = Instruments(
        device=CPU, peak_memory=PeakMemory(CPU), gpu=None, meter=meter, energy_source="rapl", no_energy=None
    )
    calibration = dataclasses.replace(CALIBRATION, source="rapl", scope="package", period_seconds=0.001)
    preset = EnergyPreset(name="brief", trials=2, window_seconds=0.5, segments=1)
    finished = run_case(command(energy=preset, calibration=calibration), instruments, lambda message: None)
    measurement = finished.outcome
    assert isinstance(measurement, Measurement)
    summary = pool_energy([measurement.energy], batch_size=1)
    assert (summary.source, summary.scope) == ("rapl", "package")
    assert summary.trials in (2, 4)
    assert summary.average_power_watts == pytest.approx(80.0, rel=0.03)
    seconds = [window.seconds / window.iterations for trial in measurement.energy.trials for window in trial.windows]
    assert summary.joules_per_image == pytest.approx(80.0 * statistics.mean(seconds), rel=0.03)
    assert finished.trace == ()


def test_what_holds_the_clocks_back_only_while_a_case_is_timed_is_seen(
    on_fake_board: Instruments, fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, time_case = fake_nvml.device(0), measured_case.time_case

    def throttled(*arguments: Any, **options: Any) -> Any:
        board.event_reasons, board.sm_clock_mhz = 0x8 | 0x4, 1200
        time.sleep(0.5)
        timings = time_case(*arguments, **options)
        time.sleep(0.1)
        board.event_reasons, board.sm_clock_mhz = 0, 1980
        return timings

    assert "throttled" not in measured(command(), on_fake_board).flags
    monkeypatch.setattr(measured_case, "time_case", throttled)
    measurement = measured(command(), on_fake_board)
    on_fake_board.close()
    during = measurement.state_during
    assert during is not None
    assert (during.sm_clock_mhz, during.event_reasons) == (1200.0, ("hw_slowdown", "sw_power_cap"))
    assert during.power_capped_fraction > 0.5
    assert measurement.state_after is not None
    assert measurement.state_after.event_reasons == ()
    assert "throttled" in measurement.flags


def test_a_case_is_timed_whatever_becomes_of_the_observer(on_fake_board: Instruments) -> None:
    assert on_fake_board.meter is not None
    process = on_fake_board.meter._observer._process  # type: ignore[union-attr]
    process.kill()
    process.wait()
    measurement = measured(command(), on_fake_board)
    on_fake_board.close()
    assert measurement.state_during is None
    assert measurement.state_before is not None


def test_a_throttled_device_is_flagged(on_fake_board: Instruments, fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).event_reasons = 0x20
    measurement = measured(command(), on_fake_board)
    on_fake_board.close()
    assert "throttled" in measurement.flags


def test_heat_between_the_two_looks_is_flagged(
    on_fake_board: Instruments, fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing throttles before or after, but the driver has counted time below the wished clocks for heat."""
    timed = measured_case.time_case

    def heating(*arguments: Any, **options: Any) -> Any:
        fake_nvml.device(0).violation_thermal_ns += 1_000_000
        return timed(*arguments, **options)

    assert "throttled" not in measured(command(), on_fake_board).flags
    monkeypatch.setattr(measured_case, "time_case", heating)
    assert "throttled" in measured(command(), on_fake_board).flags
    on_fake_board.close()


def test_others_on_the_gpu_are_flagged_with_or_without_energy(on_fake_board: Instruments, fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    board.compute_processes = [(os.getpid(), 2**20), (999_999, 2**20)]
    measurement = measured(command(), on_fake_board)
    on_fake_board.close()
    assert "shared" in measurement.flags
    assert measurement.state_before is not None
    assert measurement.state_before.foreign_processes == 1


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_others_on_the_processor_are_flagged(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(measured_case.OtherLoad, "share", lambda self: share)
    assert ("shared" in measured(command(), open_instruments(CPU)).flags) == (share > 0)


def test_compiling_while_it_is_timed_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([1, 2])
    monkeypatch.setattr(measured_case, "compiled_graphs", lambda: next(counts))
    assert "recompiled" in measured(command(), open_instruments(CPU)).flags


def test_warming_up_takes_a_quarter_of_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float | None] = []
    warm_up = measured_case.warm_up

    def recorded(*arguments: Any, limit_seconds: float | None = None, **options: Any) -> Any:
        limits.append(limit_seconds)
        return warm_up(*arguments, limit_seconds=limit_seconds, **options)

    monkeypatch.setattr(measured_case, "warm_up", recorded)
    measured(command(limit_seconds=8.0), open_instruments(CPU))
    assert limits == [2.0]


def test_energy_that_nobody_asked_for_is_not_measured(on_fake_board: Instruments) -> None:
    finished = run_case(command(), on_fake_board, lambda message: None)
    measurement = finished.outcome
    assert isinstance(measurement, Measurement)
    on_fake_board.close()
    assert (measurement.energy.status, measurement.energy.reason) == ("not_measured", "not_requested")
    assert finished.trace == ()
    assert measurement.stage_seconds.keys() == {"build", "warm-up", "latency"}


def test_a_machine_without_energy_says_why_and_measures_the_rest() -> None:
    instruments = Instruments(
        device=CPU,
        peak_memory=PeakMemory(CPU),
        gpu=None,
        meter=None,
        energy_source=None,
        no_energy=MeterUnavailableError("rapl_absent", "no package"),
    )
    preset = EnergyPreset(name="brief", trials=2, window_seconds=0.5, segments=1)
    measurement = measured(command(energy=preset), instruments)
    assert (measurement.energy.status, measurement.energy.reason) == ("not_measured", "rapl_absent")
    assert len(measurement.latencies_seconds) == 5
    assert measurement.launch_bound is None
    assert measurement.peak_memory_bytes is not None
    assert set(measurement.flags) <= {"shared"}


def test_a_limit_shortens_warming_up_and_timing() -> None:
    measurement = measured(command(protocol=PROTOCOLS["quick"], limit_seconds=0.2), open_instruments(CPU))
    assert "time_limited" in measurement.flags
    assert sum(measurement.warmup_seconds) < PROTOCOLS["quick"].warmup_seconds
    assert sum(measurement.latencies_seconds) < PROTOCOLS["quick"].timed_seconds


class Broken:
    """A meter that raises what no meter should."""

    calibration = CALIBRATION

    def sampling(self) -> nullcontext[list[Sample]]:
        return nullcontext([])

    def read(self, *arguments: object, **options: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_what_goes_wrong_after_timing_does_not_cost_the_times(on_fake_board: Instruments) -> None:
    on_fake_board.close()
    instruments = dataclasses.replace(on_fake_board, meter=Broken())  # type: ignore[arg-type]
    preset = EnergyPreset(name="brief", trials=2, window_seconds=0.5, segments=1)
    finished = run_case(command(energy=preset), instruments, lambda message: None)
    assert isinstance(finished.outcome, Measurement)
    energy = finished.outcome.energy
    assert (energy.status, energy.reason) == ("not_measured", "error")
    assert energy.detail == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert len(finished.outcome.latencies_seconds) == 5
    assert not finished.reusable


@pytest.mark.parametrize("gpu_seconds", [0.001, 0.5])
def test_a_graph_twin_is_tried_for_short_iterations_and_may_fail(
    monkeypatch: pytest.MonkeyPatch, gpu_seconds: float
) -> None:
    """On a processor that pretends to have a twin: what it does, and what becomes of one that cannot be captured."""
    twins: list[str] = []

    def replaying() -> Callable[[], Tensor]:
        twins.append("made")
        return lambda: time.sleep(0.002) or torch.zeros(1)

    def failing() -> Callable[[], Tensor]:
        raise AssertionError("not in a capture")

    for twin in (replaying, failing):
        build = measured_case.build_workload
        monkeypatch.setattr(
            measured_case,
            "build_workload",
            lambda case, device, twin=twin, build=build: dataclasses.replace(build(case, device), graph_twin=twin),
        )
        timed = measured_case.time_case
        monkeypatch.setattr(
            measured_case,
            "time_case",
            lambda *arguments, timed=timed, **options: dataclasses.replace(
                timed(*arguments, **options), gpu_seconds=(gpu_seconds,)
            ),
        )
        finished = run_case(command(), open_instruments(CPU), lambda message: None)
        monkeypatch.undo()
        measurement = finished.outcome
        assert isinstance(measurement, Measurement)
        if gpu_seconds == 0.5:
            assert measurement.graph_seconds_per_iteration == ()
            assert "graph" not in measurement.stage_seconds
        elif twin is replaying:
            assert min(measurement.graph_seconds_per_iteration) > 0.002
            assert measurement.launch_bound is not None
            assert measurement.stage_seconds["graph"] > 0
        else:
            assert measurement.launch_bound is None
            assert "graph_failed" in measurement.flags
            assert not finished.reusable
    assert twins == (["made"] if gpu_seconds == 0.001 else [])


def test_signs_of_life_go_on_while_energy_is_watched(on_fake_board: Instruments) -> None:
    seen: list[object] = []

    class Listening(Broken):
        def read(self, *arguments: object, **options: Any) -> None:
            seen.append(options["beat"])
            super().read()

    on_fake_board.close()
    sent: list[str] = []
    instruments = dataclasses.replace(on_fake_board, meter=Listening())  # type: ignore[arg-type]
    preset = EnergyPreset(name="brief", trials=2, window_seconds=0.5, segments=1)
    run_case(command(energy=preset), instruments, lambda message: sent.append(getattr(message, "stage", "")))
    (beat,) = seen
    count = len(sent)
    time.sleep(BEAT_SECONDS + 0.1)
    beat()  # type: ignore[operator]
    assert sent[count:] == ["energy"]
