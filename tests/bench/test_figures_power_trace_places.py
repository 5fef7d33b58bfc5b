"""Where the figure of a power trace places windows, beside where the meter had them, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from fake_nvml import FakeNvml
from virtual_board import OWN_PID, SquareWave, VirtualClock

from infsa_bench.energy_plan import ENERGY_PRESETS, TrialShare, WindowPlan
from infsa_bench.measure.energy.counter import NvmlCounter
from infsa_bench.measure.energy.load import Load
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.energy.observer import DirectObserver, Edge, Sample
from infsa_bench.measure.nvml import Gpu
from infsa_bench.record import EnergyCalibration, EnergyWindow
from infsa_bench.report.figures.power_trace import lead_seconds, trial_spans, window_spans

PERIOD_SECONDS = 0.1


class Witness(NvmlCounter):
    """The meter, which remembers when its windows were."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[tuple[int, int]] = []

    def _window(self, load: Load, plan: WindowPlan, calibration: EnergyCalibration) -> tuple[EnergyWindow, Edge, Edge]:
        window, first, last = super()._window(load, plan, calibration)
        self.seen.append((first.ns, last.ns))
        return window, first, last


class Sampler(DirectObserver):
    """The observer, which remembers when each of its traces began."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.begins: list[int] = []

    def stop_trace(self) -> tuple[Sample, ...]:
        samples = super().stop_trace()
        self.begins.append(samples[0].ns)
        return samples


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize("iteration_seconds", [0.002, 0.02, 0.05, 0.4, 2.3])
def test_windows_are_placed_to_a_period_of_the_counter(
    fake_nvml: FakeNvml, iteration_seconds: float, preset: str
) -> None:
    board = fake_nvml.device(0)
    board.period_ns, board.window_ns, board.compute_processes = (
        round(PERIOD_SECONDS * 1e9),
        25_000_000,
        [(OWN_PID, 2**30)],
    )
    clock = VirtualClock(fake_nvml)
    gpu = Gpu.find(board.uuid, board.pci_bus_id)
    observer = Sampler(gpu, clock, OWN_PID)
    counter = Witness(gpu, clock, observer)
    meter = EnergyMeter([("nvml_counter", counter)], clock, gpu=gpu, observer=observer)
    load, plan = SquareWave(fake_nvml, iteration_seconds), ENERGY_PRESETS[preset]
    result = meter.read(load, iteration_seconds, plan, TrialShare.all_of(plan.trials))
    trials = result.reading.trials
    placed = [
        window
        for trial, span in zip(trials, trial_spans(trials, result.trace), strict=True)
        for window in window_spans(trial, span, lead_seconds(result.reading.calibration))
    ]
    # The clock of the trace begins with its first sample. Of the observer's traces the last ones are the trials'.
    origin = observer.begins[-len(trials)] / 1e9
    errors = [window.begin + origin - begin / 1e9 for window, (begin, _) in zip(placed, counter.seen, strict=True)]
    assert len(placed) > 2
    assert -PERIOD_SECONDS < min(errors) <= max(errors) < PERIOD_SECONDS
