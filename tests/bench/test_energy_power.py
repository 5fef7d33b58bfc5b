"""Sampled power where there is no energy counter, on the fake NVML in virtual time."""

from __future__ import annotations

import pytest
from fake_nvml import CounterMode, FakeNvml, PowerMode
from virtual_board import OWN_PID, SquareWave, VirtualClock, make_meter

from infsa_bench.energy_plan import (
    CONTINUOUS_BELOW_SECONDS,
    ENERGY_PRESETS,
    UNKNOWN_PERIOD_SECONDS,
    TrialShare,
    WindowPlan,
    plan_trial,
)
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.observer import DirectObserver
from infsa_bench.measure.energy.power import BEATING_BIAS, SAMPLING_BIAS, WINDOW_SECONDS, NvmlPower
from infsa_bench.measure.nvml import Gpu
from infsa_bench.record import EnergyWindow

QUICK = ENERGY_PRESETS["quick"]
SHORT_IDLE_SECONDS = 0.5


def power_meter(fake: FakeNvml) -> NvmlPower:
    clock = VirtualClock(fake)
    gpu = Gpu.find(fake.device(0).uuid, None)
    return NvmlPower(gpu, clock, DirectObserver(gpu, clock, OWN_PID))


def watched(fake: FakeNvml, load: SquareWave) -> EnergyWindow:
    meter = power_meter(fake)
    calibration = meter.calibrate_idle(SHORT_IDLE_SECONDS)
    plans = plan_trial(
        QUICK,
        iteration_seconds=load.iteration_ns / 1e9,
        period_seconds=UNKNOWN_PERIOD_SECONDS,
        trial=0,
        total=1,
    )
    (window,) = meter.watch(load, plans, calibration).windows
    return window


def relative_error(window: EnergyWindow, load: SquareWave) -> float:
    return window.joules / window.iterations / load.joules_per_iteration - 1


@pytest.mark.parametrize("average_ns", [0, 1_000_000_000])
@pytest.mark.parametrize("mode", [PowerMode.NORMAL, PowerMode.USAGE_ONLY])
def test_constant_power_is_exact(fake_nvml: FakeNvml, mode: PowerMode, average_ns: int) -> None:
    """Instant or averaged over a second, by the new call or the old one."""
    board = fake_nvml.device(0)
    board.counter_mode, board.power_mode, board.average_ns = CounterMode.NOT_SUPPORTED, mode, average_ns
    load = SquareWave(fake_nvml, 0.002, high=310.0, low=310.0)
    window = watched(fake_nvml, load)
    assert relative_error(window, load) == pytest.approx(0, abs=1e-6)
    assert window.seconds == pytest.approx(WINDOW_SECONDS)
    assert window.power_joules == window.joules


def test_idle_is_watched(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    board.counter_mode, board.idle_watts, board.temperature = CounterMode.NOT_SUPPORTED, 72.5, 51
    meter = power_meter(fake_nvml)
    calibration = meter.calibrate_idle(3.0)
    assert calibration.source == "nvml_power"
    assert calibration.scope == "gpu"
    assert calibration.idle_watts == pytest.approx(72.5)
    assert calibration.idle_seconds == pytest.approx(3.0)
    assert calibration.temperature_celsius == 51
    assert calibration.period_seconds is None
    assert calibration.doubts == ("sampled_power",)
    load = SquareWave(fake_nvml, 0.010)
    assert meter.calibrate_under_load(load, calibration) == calibration


def test_the_module_s_power_is_told_apart(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).module_scope_only = 1
    assert power_meter(fake_nvml).calibrate_idle(SHORT_IDLE_SECONDS).scope == "module"


@pytest.mark.parametrize("phase_ns", [1, 37_000_000, 81_000_000])
@pytest.mark.parametrize("iteration_seconds", [0.002, 0.010, 0.0334, 0.050, 0.100, 0.130, 0.400, 1.700, 4.0, 13.0])
def test_a_square_wave_is_within_the_stated_bias(fake_nvml: FakeNvml, iteration_seconds: float, phase_ns: int) -> None:
    """On a sensor that sees all of the time."""
    fake_nvml.device(0).phase_ns = phase_ns
    load = SquareWave(fake_nvml, iteration_seconds)
    assert abs(relative_error(watched(fake_nvml, load), load)) < SAMPLING_BIAS / 2


@pytest.mark.parametrize("phase_ns", [1, 37_000_000, 81_000_000])
@pytest.mark.parametrize("iteration_seconds", [0.0005, 0.002, 0.0047])
def test_short_iterations_are_within_the_bias_of_a_part_time_sensor(
    fake_nvml: FakeNvml, iteration_seconds: float, phase_ns: int
) -> None:
    assert iteration_seconds < CONTINUOUS_BELOW_SECONDS
    fake_nvml.device(0).phase_ns, fake_nvml.device(0).window_ns = phase_ns, 25_000_000
    load = SquareWave(fake_nvml, iteration_seconds)
    assert abs(relative_error(watched(fake_nvml, load), load)) < SAMPLING_BIAS / 2


@pytest.mark.parametrize("iteration_seconds", [0.010, 0.020, 0.0334, 0.050, 0.100, 0.130, 0.400, 1.700])
def test_a_part_time_sensor_fools_it_within_the_stated_bias(fake_nvml: FakeNvml, iteration_seconds: float) -> None:
    """Why sampled power is always doubted: what beats with the sensor is no better seen in a longer window."""
    errors = []
    for phase in range(6):
        fake_nvml.reset()
        fake_nvml.device(0).phase_ns, fake_nvml.device(0).window_ns = 1 + phase * 16_000_000, 25_000_000
        load = SquareWave(fake_nvml, iteration_seconds)
        window = watched(fake_nvml, load)
        errors.append(abs(relative_error(window, load)))
        assert power_meter(fake_nvml).relative_bias((window,)) == BEATING_BIAS
    assert max(errors) < BEATING_BIAS
    if iteration_seconds == 0.100:
        assert max(errors) > 5 * SAMPLING_BIAS


@pytest.mark.parametrize("iteration_seconds", [0.002, 0.130, 1.700, 3.0, 13.0, 40.0])
def test_windows_are_long_and_of_whole_iterations(fake_nvml: FakeNvml, iteration_seconds: float) -> None:
    load = SquareWave(fake_nvml, iteration_seconds)
    window = watched(fake_nvml, load)
    assert window.seconds >= WINDOW_SECONDS - 1e-6
    assert window.seconds == pytest.approx(window.iterations * iteration_seconds)
    assert window.iterations >= 0.99
    if iteration_seconds > 0.1:
        assert abs(window.iterations - round(window.iterations)) < 0.01 * window.iterations


def test_settling_runs_the_load(fake_nvml: FakeNvml) -> None:
    meter = power_meter(fake_nvml)
    calibration = meter.calibrate_idle(SHORT_IDLE_SECONDS)
    load = SquareWave(fake_nvml, 0.1)
    begin_ns = fake_nvml.now_ns
    meter.settle(load, 1.0, calibration)
    assert fake_nvml.now_ns - begin_ns == pytest.approx(1e9)
    assert load.iterations_between(begin_ns, fake_nvml.now_ns) == pytest.approx(10)
    assert fake_nvml.energy_joules(begin_ns, fake_nvml.now_ns) == pytest.approx(10 * load.joules_per_iteration)


def test_no_power_is_a_reason(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).power_mode = PowerMode.NOT_SUPPORTED
    with pytest.raises(MeterUnavailableError) as caught:
        power_meter(fake_nvml).calibrate_idle(SHORT_IDLE_SECONDS)
    assert caught.value.reason == "power_unsupported"


class Fading(SquareWave):
    """A load in whose middle the sensor stops to answer."""

    def keep_busy(self, until_ns: int) -> None:
        super().keep_busy(until_ns)
        if until_ns - self._start_ns > 4e9:
            self._fake.device(0).power_mode = PowerMode.NOT_SUPPORTED


def test_power_that_stops_half_way_is_a_reason_not_a_number(fake_nvml: FakeNvml) -> None:
    meter = power_meter(fake_nvml)
    calibration = meter.calibrate_idle(SHORT_IDLE_SECONDS)
    with pytest.raises(MeterUnavailableError) as caught:
        meter.watch(Fading(fake_nvml, 0.1), (WindowPlan(offset_seconds=0, ticks=20),), calibration)
    assert caught.value.reason == "power_unsupported"


def test_a_whole_reading_says_what_it_is(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).counter_mode = CounterMode.NOT_SUPPORTED
    load = SquareWave(fake_nvml, 0.002)
    reading = make_meter(fake_nvml).read(load, 0.002, QUICK, TrialShare.all_of(2)).reading
    assert reading.status == "measured_low_confidence"
    assert reading.doubts[:2] == ("counter_unsupported", "sampled_power")
    assert reading.relative_bias == SAMPLING_BIAS
    assert reading.calibration is not None
    assert reading.calibration.source == "nvml_power"
    for trial in reading.trials:
        assert trial.joules_per_iteration == pytest.approx(load.joules_per_iteration, rel=0.01)
