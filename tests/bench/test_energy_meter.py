"""Accuracy, honesty and statuses of whole energy readings, on the fake NVML in virtual time.

The real pynvml reads a fake board whose sensor ticks like those of data-centre GPUs: every 100 ms, averaging over the
last 25 ms only.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import statistics
from typing import Any

import pynvml
import pytest
from fake_nvml import CounterMode, FakeNvml, PowerMode
from virtual_board import SquareWave, VirtualClock, make_meter

from infsa_bench.analyze.energy import pool_energy
from infsa_bench.energy_plan import (
    ENERGY_PRESETS,
    EnergyPreset,
    TrialShare,
    energy_seconds,
    number_of_trials,
    plan_trial,
    trials_of_replicate,
)
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy import meter as meter_module
from infsa_bench.measure.energy.doubts import CROSSCHECK_GAP
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.energy.observer import POLL_NS
from infsa_bench.record import EnergyReading

ITERATION_SECONDS = (0.010, 0.020, 0.0334, 0.050, 0.100, 0.130, 0.400, 1.700)
QUICK, FULL = ENERGY_PRESETS["quick"], ENERGY_PRESETS["full"]
SHORT = EnergyPreset(name="short", trials=1, window_seconds=0.4, segments=1)
PERIOD_NS = 100_000_000


def part_time_board(fake: FakeNvml, *, phase: float, jitter_sd: float = 0.0, seed: int = 1) -> None:
    """A fresh board whose sensor looks at the last 25 of every 100 ms; ``phase`` in parts of the period."""
    fake.reset()
    board = fake.device(0)
    board.period_ns, board.window_ns = PERIOD_NS, 25_000_000
    board.phase_ns = 1 + int(phase * PERIOD_NS)
    board.jitter_sd, board.seed = jitter_sd, seed


def read(meter: EnergyMeter, load: SquareWave, preset: EnergyPreset = QUICK) -> EnergyReading:
    return meter.read(load, load.iteration_ns / 1e9, preset, TrialShare.all_of(preset.trials)).reading


def relative_error(reading: EnergyReading, load: SquareWave) -> float:
    return statistics.mean(trial.joules_per_iteration for trial in reading.trials) / load.joules_per_iteration - 1


@pytest.mark.parametrize("window_seconds", [0.25, 1.0, 5.0])
def test_constant_power_is_exact_at_every_phase(fake_nvml: FakeNvml, window_seconds: float) -> None:
    """The naive meter, two readings around the work, fails the bound that ours keeps."""
    preset = EnergyPreset(name="one", trials=1, window_seconds=window_seconds, segments=1)
    ours, naive = [], []
    for phase in range(20):
        part_time_board(fake_nvml, phase=phase / 20)
        load = SquareWave(fake_nvml, 0.002, high=300.0, low=300.0)
        reading = read(make_meter(fake_nvml), load, preset)
        seconds = sum(window.seconds for window in reading.trials[0].windows)
        bound = 2 * POLL_NS / 1e9 / seconds
        ours.append(abs(relative_error(reading, load)) / bound)
        assert reading.relative_bias is not None
        assert abs(relative_error(reading, load)) <= reading.relative_bias
        naive.append(abs(two_readings(fake_nvml, load, window_seconds) / load.joules_per_iteration - 1))
    assert max(ours) <= 1
    if window_seconds == 0.25:
        assert max(naive) > 0.10


def two_readings(fake: FakeNvml, load: SquareWave, seconds: float) -> float:
    """Joules per iteration as a naive meter sees them: read, work, read, the device idle before and after."""
    board = pynvml.nvmlDeviceGetHandleByUUID(fake.device(0).uuid)
    clock = VirtualClock(fake)
    clock.sleep_until(clock.now_ns() + 1_000_000_000)
    begin_ns, begin = clock.now_ns(), pynvml.nvmlDeviceGetTotalEnergyConsumption(board)
    load.begin()
    load.keep_busy(begin_ns + round(seconds * 1e9))
    load.drain()
    joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(board) - begin) / 1e3
    return float(joules / load.iterations_between(begin_ns, clock.now_ns()))


def read_late(
    fake: FakeNvml, iteration_seconds: float, duty: float, phase: float, preset: EnergyPreset
) -> tuple[EnergyReading, SquareWave]:
    """Read a load that starts later than the meter lets it, always by the same part of what the meter shifts it by.

    The counter's own phase makes no difference, since the meter goes by its updates.
    """
    part_time_board(fake, phase=phase)
    load = SquareWave(fake, iteration_seconds, duty=duty)
    late = _Late(load, VirtualClock(fake), round(phase * min(iteration_seconds * 1e9, PERIOD_NS)))
    return read(make_meter(fake), late, preset), load


PHASES = [pytest.param(4, id="4-phases"), pytest.param(20, id="20-phases", marks=pytest.mark.soak)]


@pytest.mark.parametrize("phases", PHASES)
@pytest.mark.parametrize("iteration_seconds", ITERATION_SECONDS)
def test_full_preset_sees_through_a_part_time_sensor(
    fake_nvml: FakeNvml, iteration_seconds: float, phases: int
) -> None:
    for phase, duty in itertools.product(range(phases), (0.37, 0.5)):
        reading, load = read_late(fake_nvml, iteration_seconds, duty, phase / phases, FULL)
        assert reading.status == "measured"
        assert abs(relative_error(reading, load)) < 0.01, (phase, duty)


@pytest.mark.parametrize("phases", PHASES)
@pytest.mark.parametrize("iteration_seconds", [*ITERATION_SECONDS, 0.0047, 0.11, 0.17, 0.25])
def test_quick_preset_is_within_two_percent(fake_nvml: FakeNvml, iteration_seconds: float, phases: int) -> None:
    for phase in range(phases):
        reading, load = read_late(fake_nvml, iteration_seconds, 0.37, phase / phases, QUICK)
        assert abs(relative_error(reading, load)) <= 0.02, phase


@pytest.mark.parametrize("iteration_seconds", [0.010, 0.020, 0.050, 0.100])
def test_one_unstratified_window_is_fooled(fake_nvml: FakeNvml, iteration_seconds: float) -> None:
    """What the segments are for: the same board, one aligned window of five seconds."""
    worst = 0.0
    for phase in range(20):
        part_time_board(fake_nvml, phase=0.5)
        load = SquareWave(fake_nvml, iteration_seconds)
        clock = VirtualClock(fake_nvml)
        clock.sleep_until(clock.now_ns() + round((1 + phase / 20) * PERIOD_NS))
        one = EnergyPreset(name="one", trials=1, window_seconds=5.0, segments=1)
        offset_ns = round(iteration_seconds * 1e9 * phase / 20)
        worst = max(worst, abs(relative_error(read(make_meter(fake_nvml), _Late(load, clock, offset_ns), one), load)))
    assert worst > 0.05


class _Late(SquareWave):
    """A load whose phase against the counter is not the meter's choice."""

    def __init__(self, load: SquareWave, clock: VirtualClock, offset_ns: int) -> None:
        self.__dict__.update(load.__dict__)
        self._clock = clock
        self._offset_ns = offset_ns

    def begin(self) -> None:
        self._clock.sleep_until(self._clock.now_ns() + self._offset_ns)
        super().begin()


@pytest.mark.parametrize(
    "count", [pytest.param(8, id="8-lengths"), pytest.param(120, id="120-lengths", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("preset", [QUICK, FULL], ids=["quick", "full"])
def test_the_printed_bound_holds_for_iterations_of_any_length(
    fake_nvml: FakeNvml, preset: EnergyPreset, count: int
) -> None:
    """Without noise nothing else is in the interval. Many lengths have no whole number in any window."""
    chance = random.Random(f"{preset.name} {count}")
    lengths = [
        0.8714,
        0.7736,
        0.204,
        0.7793,
        *(math.exp(chance.uniform(math.log(0.005), math.log(2))) for _ in range(count)),
    ]
    for iteration_seconds, duty in itertools.product(lengths, (0.37, 0.5)):
        reading, load = read_late(fake_nvml, iteration_seconds, duty, chance.random(), preset)
        assert reading.relative_bias is not None
        assert abs(relative_error(reading, load)) <= reading.relative_bias, (iteration_seconds, duty)


def covered(fake: FakeNvml, iteration_seconds: float, seed: int, preset: EnergyPreset = QUICK) -> tuple[bool, float]:
    """Whether the printed interval holds the truth on a jittery board, and the signed error."""
    chance = random.Random(f"{iteration_seconds} {seed}")
    part_time_board(fake, phase=chance.random(), jitter_sd=0.01, seed=seed + 1)
    # Calibration and settling begin the load twice before the trials; the quick preset's windows follow.
    windows = 4 if preset == QUICK and iteration_seconds > PERIOD_NS / 1e9 else 8
    factors = [1.0, 1.0] + [factor for _ in range(12) for factor in [chance.gauss(1, 0.005)] * windows]
    load = SquareWave(fake, iteration_seconds, factors=factors)
    summary = pool_energy([read(make_meter(fake), load, preset)], batch_size=1)
    assert summary.low_joules is not None
    assert summary.high_joules is not None
    assert summary.joules_per_image is not None
    truth = load.joules_per_iteration
    return summary.low_joules <= truth <= summary.high_joules, summary.joules_per_image / truth - 1


def test_interval_covers_the_truth(fake_nvml: FakeNvml) -> None:
    results = [covered(fake_nvml, seconds, seed) for seconds in ITERATION_SECONDS for seed in range(8)]
    assert statistics.mean(is_covered for is_covered, _ in results) >= 0.91
    assert abs(statistics.mean(error for _, error in results)) <= 0.003


@pytest.mark.soak
@pytest.mark.parametrize("preset", [QUICK, FULL], ids=["quick", "full"])
@pytest.mark.parametrize("iteration_seconds", [0.204, 0.7736, 0.7793, 0.8714])
def test_interval_covers_the_truth_where_nothing_is_whole(
    fake_nvml: FakeNvml, iteration_seconds: float, preset: EnergyPreset
) -> None:
    results = [covered(fake_nvml, iteration_seconds, seed, preset) for seed in range(60)]
    assert statistics.mean(is_covered for is_covered, _ in results) >= 0.91


@pytest.mark.soak
@pytest.mark.parametrize("iteration_seconds", ITERATION_SECONDS)
def test_interval_covers_the_truth_over_500_seeds(fake_nvml: FakeNvml, iteration_seconds: float) -> None:
    results = [covered(fake_nvml, iteration_seconds, seed) for seed in range(500)]
    assert statistics.mean(is_covered for is_covered, _ in results) >= 0.91
    assert abs(statistics.mean(error for _, error in results)) <= 0.003


@pytest.mark.parametrize("replicates", [1, 3, 5])
@pytest.mark.parametrize("preset", [QUICK, FULL], ids=["quick", "full"])
def test_replicates_together_see_what_one_process_sees(
    fake_nvml: FakeNvml, preset: EnergyPreset, replicates: int
) -> None:
    """A very slow iteration of layers that beat with the sensor: 2.4 s, high and low power ten times a second."""
    readings = []
    for replicate in range(replicates):
        part_time_board(fake_nvml, phase=0.5)
        meter = make_meter(fake_nvml)
        layers = SquareWave(fake_nvml, 0.1)
        load = Grouped(layers, 24)
        share = trials_of_replicate(preset, replicate, replicates)
        readings.append(meter.read(load, 2.4, preset, share).reading)
    summary = pool_energy(readings, batch_size=1)
    assert summary.joules_per_image == pytest.approx(24 * layers.joules_per_iteration, rel=0.02)


def test_trials_are_numbered_over_all_replicates(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[tuple[int, int]] = []

    def recorded(*arguments: Any, trial: int, total: int, **options: Any) -> Any:
        numbers.append((trial, total))
        return plan_trial(*arguments, trial=trial, total=total, **options)

    monkeypatch.setattr(meter_module, "plan_trial", recorded)
    for replicate in range(3):
        meter = make_meter(fake_nvml)
        meter.read(SquareWave(fake_nvml, 0.002), 0.002, FULL, trials_of_replicate(FULL, replicate, 3))
    assert numbers == [(number, 5) for number in range(5)]


class Grouped:
    """Iterations that are so many of another load's each."""

    def __init__(self, parts: SquareWave, count: int) -> None:
        self._parts, self._count = parts, count
        self.begin, self.keep_busy, self.drain = parts.begin, parts.keep_busy, parts.drain

    def iterations_between(self, begin_ns: int, end_ns: int) -> float:
        return self._parts.iterations_between(begin_ns, end_ns) / self._count

    def seconds_per_iteration(self) -> float:
        return self._parts.iteration_ns * self._count / 1e9


def test_iterations_that_last_longer_under_load_are_planned_as_they_are(fake_nvml: FakeNvml) -> None:
    """They were timed 5 % shorter; the segments fit what settling shows."""
    part_time_board(fake_nvml, phase=0.4)
    load = SquareWave(fake_nvml, 0.13)
    share = TrialShare.all_of(FULL.trials)
    reading = make_meter(fake_nvml).read(load, 0.13 / 1.05, FULL, share).reading
    assert abs(relative_error(reading, load)) < 0.01
    for window in (window for trial in reading.trials for window in trial.windows):
        assert abs(window.iterations - round(window.iterations)) < 0.02


class Rising(SquareWave):
    """Power comes up in steps over the first tenth of a second after a start."""

    def begin(self) -> None:
        self._rise_ns = self._fake.now_ns
        super().begin()

    def _emit(self, until_ns: float) -> None:
        levels = self._levels
        if until_ns - self._rise_ns < 1e8:
            self._levels = (levels[0] / 2, levels[1] / 2)
        super()._emit(until_ns)
        self._levels = levels


def test_what_the_board_draws_before_it_has_come_up_is_discarded(fake_nvml: FakeNvml) -> None:
    part_time_board(fake_nvml, phase=0.4)
    load = Rising(fake_nvml, 0.01, high=300.0, low=300.0)
    # A first look at half the power tells that steps are really there.
    load.begin()
    load.keep_busy(fake_nvml.now_ns + 50_000_000)
    load.drain()
    reading = read(make_meter(fake_nvml), load)
    assert abs(relative_error(reading, load)) < 0.005


def test_the_printed_bound_is_neither_too_small_nor_too_wide(fake_nvml: FakeNvml) -> None:
    """Half a percent for a part-time sensor, and the two edges' half milliseconds over the window."""
    part_time_board(fake_nvml, phase=0.4)
    reading = read(make_meter(fake_nvml), SquareWave(fake_nvml, 0.002, high=300.0, low=300.0))
    for trial in reading.trials:
        assert trial.windows[0].edge_seconds == pytest.approx(0.001, rel=0.01)
    assert reading.relative_bias == pytest.approx(0.005 + 0.001 / 2.0, rel=0.01)


def test_trials_know_when_they_began_and_the_clock_they_saw(fake_nvml: FakeNvml) -> None:
    meter = make_meter(fake_nvml)
    load = SquareWave(fake_nvml, 0.002)
    board = fake_nvml.device(0)

    class Clocked(SquareWave):
        """Fast for a moment after each start, and a little slower from trial to trial after that."""

        def keep_busy(self, until_ns: int) -> None:
            super().keep_busy(until_ns)
            is_fresh = fake_nvml.now_ns - self._start_ns < 5e8
            board.sm_clock_mhz = 1980 if is_fresh else 1980 - 100 * self._begins

    reading = read(meter, Clocked(fake_nvml, 0.002))
    begins = [trial.begin_seconds for trial in reading.trials]
    assert begins[0] == 0.0
    assert begins[1] == pytest.approx(2.4, abs=0.2)
    assert begins[2] == pytest.approx(4.8, abs=0.4)
    # The first trial is the third start: counter and settling come before it.
    assert [trial.sm_clock_mhz for trial in reading.trials] == [1680, 1580, 1480]
    assert read(meter, load).doubts == ()


def test_settling_takes_a_second_or_ten_periods(fake_nvml: FakeNvml) -> None:
    for period_ms, least, most in ((20, 1.0, 1.2), (300, 3.0, 3.8)):
        fake_nvml.reset()
        fake_nvml.device(0).period_ns = fake_nvml.device(0).window_ns = period_ms * 10**6
        meter = make_meter(fake_nvml)
        watch = meter.read(SquareWave(fake_nvml, 0.002), 0.002, QUICK, TrialShare.all_of(3))
        assert least <= watch.stage_seconds["settle"] <= most


def test_a_short_unaligned_window_is_refused(fake_nvml: FakeNvml) -> None:
    part_time_board(fake_nvml, phase=0.3)
    meter = make_meter(fake_nvml)
    load = SquareWave(fake_nvml, 0.002)
    calibration = meter.calibrate()
    counter = meter._meters["nvml_counter"]
    calibration = counter.calibrate_under_load(load, calibration)
    with pytest.raises(MeterUnavailableError) as refusal:
        counter.watch_unaligned(load, 0.4, calibration)  # type: ignore[attr-defined]
    assert refusal.value.reason == "window_too_short"
    for seconds, is_refused in ((1.95, True), (2.05, False)):
        with contextlib.ExitStack() as stack:
            if is_refused:
                stack.enter_context(pytest.raises(MeterUnavailableError))
            counter.watch_unaligned(load, seconds, calibration)  # type: ignore[attr-defined]
    window = counter.watch_unaligned(load, 10.0, calibration)  # type: ignore[attr-defined]
    error = window.joules / window.iterations / load.joules_per_iteration - 1
    assert abs(error) <= window.edge_seconds / window.seconds


def test_gain_passes_through(fake_nvml: FakeNvml) -> None:
    """A board's gain is its own: it is in the reading, neither hidden nor corrected."""
    part_time_board(fake_nvml, phase=0.1)
    fake_nvml.device(0).gain = 1.05
    load = SquareWave(fake_nvml, 0.002, high=300.0, low=300.0)
    assert relative_error(read(make_meter(fake_nvml), load), load) == pytest.approx(0.05, abs=0.005)


def test_calibration_finds_the_counter_s_habits(fake_nvml: FakeNvml) -> None:
    part_time_board(fake_nvml, phase=0.7, jitter_sd=0.02)
    load = SquareWave(fake_nvml, 0.002, high=300.0, low=300.0)
    calibration = read(make_meter(fake_nvml), load).calibration
    assert calibration is not None
    assert calibration.period_seconds == pytest.approx(0.1, rel=0.02)
    assert calibration.period_p95_seconds == pytest.approx(0.1033, abs=0.003)
    assert calibration.idle_watts == pytest.approx(60.0, rel=0.001)
    assert calibration.idle_seconds == pytest.approx(10.0, rel=0.02)
    assert calibration.scope == "gpu"
    assert calibration.step_joules is not None
    assert 27 < calibration.step_joules < 30.5


@pytest.mark.parametrize("period_ms", [10, 20, 100, 400])
def test_other_counters(fake_nvml: FakeNvml, period_ms: int) -> None:
    part_time_board(fake_nvml, phase=0.2)
    board = fake_nvml.device(0)
    board.period_ns, board.window_ns, board.phase_ns = period_ms * 10**6, period_ms * 10**6 // 2, 1
    load = SquareWave(fake_nvml, 0.030)
    reading = read(make_meter(fake_nvml), load)
    assert abs(relative_error(reading, load)) < 0.01
    assert reading.doubts == (("slow_counter",) if period_ms == 400 else ())


def test_no_counter_falls_to_sampled_power(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).counter_mode = CounterMode.NOT_SUPPORTED
    load = SquareWave(fake_nvml, 0.002, high=300.0, low=300.0)
    reading = read(make_meter(fake_nvml), load)
    assert reading.status == "measured_low_confidence"
    assert reading.doubts == ("counter_unsupported", "sampled_power")
    assert reading.calibration is not None
    assert reading.calibration.source == "nvml_power"
    assert abs(relative_error(reading, load)) < 0.01


def test_frozen_counter_falls_to_sampled_power(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).counter_mode = CounterMode.FROZEN
    reading = read(make_meter(fake_nvml), SquareWave(fake_nvml, 0.002))
    assert (reading.status, reading.reason) == ("measured_low_confidence", "counter_frozen")
    assert reading.calibration is not None
    assert reading.calibration.source == "nvml_power"


@pytest.mark.parametrize(
    ("counter", "reason"),
    [(CounterMode.NOT_SUPPORTED, "counter_unsupported"), (CounterMode.FROZEN, "counter_frozen")],
)
def test_neither_counter_nor_power_is_no_number(fake_nvml: FakeNvml, counter: CounterMode, reason: str) -> None:
    board = fake_nvml.device(0)
    board.counter_mode, board.power_mode = counter, PowerMode.NOT_SUPPORTED
    reading = read(make_meter(fake_nvml), SquareWave(fake_nvml, 0.002))
    assert (reading.status, reading.reason, reading.trials) == ("not_measured", reason, ())


def test_counter_that_freezes_or_resets_midway_is_no_number(fake_nvml: FakeNvml) -> None:
    for mode, reason in ((CounterMode.FROZEN, "counter_frozen"), (CounterMode.RESETS, "counter_reset")):
        fake_nvml.reset()
        board = fake_nvml.device(0)
        meter = make_meter(fake_nvml)
        load = SquareWave(fake_nvml, 0.002)
        assert read(meter, load).status == "measured"
        board.reset_at_ns = fake_nvml.now_ns + 2_500_000_000
        board.counter_mode = mode
        reading = read(meter, load)
        assert (reading.status, reading.reason, reading.trials) == ("not_measured", reason, ())


def test_foreign_processes_are_doubted(fake_nvml: FakeNvml) -> None:
    meter = make_meter(fake_nvml)
    board = fake_nvml.device(0)
    board.compute_processes = [*board.compute_processes, (999_999, 2**20)]
    reading = read(meter, SquareWave(fake_nvml, 0.002))
    assert (reading.status, reading.reason) == ("measured_low_confidence", "shared")


def test_processes_that_come_during_the_trials_are_doubted(fake_nvml: FakeNvml) -> None:
    meter = make_meter(fake_nvml)
    load = SquareWave(fake_nvml, 0.002)
    assert read(meter, load).doubts == ()
    board = fake_nvml.device(0)
    board.compute_processes = [*board.compute_processes, (999_999, 2**20)]
    assert read(meter, load).doubts == ("shared",)


@pytest.mark.parametrize(
    ("used_bytes", "utilization", "doubts"),
    [
        (512 * 2**20, 0, ()),
        (1000 * 2**20, 0, ()),
        (1100 * 2**20, 0, ("shared",)),
        (20 * 2**30, 0, ("shared",)),
        (512 * 2**20, 35, ("shared",)),
    ],
)
def test_where_processes_are_hidden_sharing_is_inferred(
    fake_nvml: FakeNvml, used_bytes: int, utilization: int, doubts: tuple[str, ...]
) -> None:
    meter = make_meter(fake_nvml)
    board = fake_nvml.device(0)
    board.hide_processes, board.memory_used_bytes, board.utilization_gpu = 1, used_bytes, utilization
    assert read(meter, SquareWave(fake_nvml, 0.002)).doubts == doubts


def test_throttled_trials_are_kept_flagged_and_repeated(fake_nvml: FakeNvml) -> None:
    meter = make_meter(fake_nvml)
    fake_nvml.device(0).event_reasons = 0x40 | 0x4
    reading = read(meter, SquareWave(fake_nvml, 0.002))
    assert (reading.status, reading.reason) == ("measured_low_confidence", "throttled")
    assert len(reading.trials) == QUICK.trials + 2
    assert {trial.throttle_reasons for trial in reading.trials} == {("hw_thermal_slowdown",)}
    assert {trial.power_capped_fraction for trial in reading.trials} == {1.0}


def test_a_power_cap_is_normal(fake_nvml: FakeNvml) -> None:
    meter = make_meter(fake_nvml)
    fake_nvml.device(0).event_reasons = 0x4
    reading = read(meter, SquareWave(fake_nvml, 0.002))
    assert reading.status == "measured"
    assert {trial.power_capped_fraction for trial in reading.trials} == {1.0}


def test_counter_against_sampled_power(fake_nvml: FakeNvml) -> None:
    """Power that NVML averages over five seconds lags so far behind a rising load that the two do not agree."""
    meter = make_meter(fake_nvml)
    load = SquareWave(fake_nvml, 0.002, high=300.0, low=300.0)
    assert read(meter, load).doubts == ()
    board = fake_nvml.device(0)
    board.power_mode, board.average_ns = PowerMode.USAGE_ONLY, 60_000_000_000
    meter = make_meter(fake_nvml)
    reading = read(meter, load)
    assert reading.reason == "counter_vs_power"
    sampled = sum(window.power_joules or 0 for trial in reading.trials for window in trial.windows)
    counted = sum(window.joules for trial in reading.trials for window in trial.windows)
    assert abs(sampled / counted - 1) > CROSSCHECK_GAP


def test_unsteady_power_takes_more_trials_and_then_is_doubted(fake_nvml: FakeNvml) -> None:
    factors = [1.0, 1.0, *itertools.chain.from_iterable([level] for level in itertools.islice(swing(), 50))]
    load = SquareWave(fake_nvml, 0.002, high=300.0, low=300.0, factors=factors)
    reading = read(make_meter(fake_nvml), load)
    assert len(reading.trials) == 2 * QUICK.trials
    assert (reading.status, reading.reason) == ("measured_low_confidence", "wide_interval")


@pytest.mark.parametrize(
    ("swing_share", "trials", "reason"), [(0.004, 3, None), (0.015, 6, None), (0.03, 6, "wide_interval")]
)
def test_how_wide_an_interval_may_be(fake_nvml: FakeNvml, swing_share: float, trials: int, reason: str | None) -> None:
    """Trials that differ by 0.4 % to each side are known well enough after three, by 1.5 % after six, by 3 % not."""
    factors = [1.0, 1.0, *[1 - swing_share, 1 + swing_share, 1.0] * 4]
    load = SquareWave(fake_nvml, 0.002, high=300.0, low=300.0, factors=factors)
    reading = read(make_meter(fake_nvml), load)
    assert (len(reading.trials), reading.reason) == (trials, reason)


def swing() -> itertools.cycle[float]:
    return itertools.cycle([0.8, 1.2, 1.0])


class Warming(SquareWave):
    """The board gets so much warmer with each trial, up to a limit."""

    def __init__(self, fake: FakeNvml, celsius: int, at_most: int) -> None:
        super().__init__(fake, 0.002, high=300.0, low=300.0)
        self._board, self._celsius, self._at_most = fake.device(0), celsius, at_most

    def drain(self) -> None:
        super().drain()
        self._board.temperature = min(self._board.temperature + self._celsius, self._at_most)


@pytest.mark.parametrize(
    ("celsius", "at_most", "trials", "doubts"),
    [
        (1, 100, 3, ()),
        # More trials, until it no longer changes; and where it goes on, a doubt.
        (8, 70, 6, ()),
        (4, 200, 6, ("temperature_drift",)),
    ],
)
def test_a_board_that_warms_up_is_waited_for_and_then_doubted(
    fake_nvml: FakeNvml, celsius: int, at_most: int, trials: int, doubts: tuple[str, ...]
) -> None:
    reading = read(make_meter(fake_nvml), Warming(fake_nvml, celsius, at_most))
    assert len(reading.trials) == trials
    assert reading.doubts == doubts


def test_what_ran_just_before_is_neither_idle_power_nor_somebody_else(fake_nvml: FakeNvml) -> None:
    """A board that comes from full power, where processes are hidden."""
    board = fake_nvml.device(0)
    meter = make_meter(fake_nvml)
    board.hide_processes = 1
    now_ns = fake_nvml.now_ns
    fake_nvml.set_power(650.0, at_ns=now_ns)
    fake_nvml.set_power(60.0, at_ns=now_ns + 1_500_000_000)
    calibration = meter.calibrate()
    assert calibration.doubts == ()
    assert calibration.idle_watts == pytest.approx(60.0, rel=0.01)


def test_memory_of_our_own_is_not_somebody_else_s(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    for own_bytes, doubts in ((0, ("shared",)), (20 * 2**30, ())):
        meter = make_meter(fake_nvml, own_bytes=own_bytes)
        board.hide_processes, board.memory_used_bytes = 1, 20 * 2**30 + 512 * 2**20
        assert meter.calibrate().doubts == doubts


def test_a_second_calibration_renews_what_is_idle_and_keeps_what_a_load_showed(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    meter = make_meter(fake_nvml)
    first = read(meter, SquareWave(fake_nvml, 0.002)).calibration
    assert first is not None
    fake_nvml.set_power(90.0)
    board.idle_watts, board.temperature = 90.0, 55
    fake_nvml.advance_ns(1_000_000_000)
    later = meter.calibrate()
    assert later.idle_watts == pytest.approx(90.0, rel=0.01)
    assert later.temperature_celsius == 55
    assert (later.period_seconds, later.rise_seconds) == (first.period_seconds, first.rise_seconds)
    assert first.call_seconds == later.call_seconds


@pytest.mark.parametrize("hide_processes", [0, 1])
def test_power_that_comes_and_goes_without_us_is_doubted(fake_nvml: FakeNvml, hide_processes: int) -> None:
    board = fake_nvml.device(0)
    meter = make_meter(fake_nvml)
    board.hide_processes = hide_processes
    for step in range(40):
        fake_nvml.set_power(60.0 if step % 2 else 110.0, at_ns=fake_nvml.now_ns + step * 500_000_000)
    assert meter.calibrate().doubts == ("restless_idle",)


def test_a_counter_computed_when_read_hides_no_sensor(fake_nvml: FakeNvml) -> None:
    """It moves every millisecond; windows are planned as for a sensor that looks ten times a second."""
    board = fake_nvml.device(0)
    board.period_ns = board.window_ns = 1_000_000
    load = SquareWave(fake_nvml, 0.05)
    reading = read(make_meter(fake_nvml), load)
    assert reading.calibration is not None
    assert reading.calibration.period_seconds == pytest.approx(0.001, abs=0.0015)
    assert {len(trial.windows) for trial in reading.trials} == {QUICK.segments}
    assert all(window.seconds >= 0.19 for trial in reading.trials for window in trial.windows)
    assert abs(relative_error(reading, load)) < 0.01


def test_a_very_slow_iteration_has_one_quick_trial_and_no_interval(fake_nvml: FakeNvml) -> None:
    load = SquareWave(fake_nvml, 3.0)
    reading = read(make_meter(fake_nvml), load)
    assert (reading.status, reading.doubts) == ("measured_low_confidence", ("single_trial",))
    assert abs(relative_error(reading, load)) < 0.02
    assert pool_energy([reading], 1).half_width_joules is None


@pytest.mark.parametrize("preset", [QUICK, FULL], ids=["quick", "full"])
@pytest.mark.parametrize("iteration_seconds", [0.001, 0.01, 0.0334, 0.1, 0.13, 0.4, 0.9, 1.7, 3.0, 12.0])
def test_a_time_budget_takes_no_planned_trial_away(
    fake_nvml: FakeNvml, preset: EnergyPreset, iteration_seconds: float
) -> None:
    """On the first cell, which also looks at the counter, and on the next; nor does it allow extra ones."""
    part_time_board(fake_nvml, phase=0.3)
    meter = make_meter(fake_nvml)
    load = SquareWave(fake_nvml, iteration_seconds, factors=[1, 1, 1, *[0.9] * 20, *[1.1] * 500])
    planned = number_of_trials(preset, preset.trials, iteration_seconds)
    for _ in range(2):
        share = TrialShare.all_of(preset.trials)
        reading = meter.read(load, iteration_seconds, preset, share, is_limited=True).reading
        assert len(reading.trials) == planned
        assert "time_limited" not in reading.doubts


def test_a_time_budget_ends_trials_that_take_much_longer_than_planned(fake_nvml: FakeNvml) -> None:
    meter = make_meter(fake_nvml)
    read(meter, SquareWave(fake_nvml, 0.01))

    class Dragging(SquareWave):
        def drain(self) -> None:
            super().drain()
            fake_nvml.advance_ns(10_000_000_000)

    share = TrialShare.all_of(FULL.trials)
    reading = meter.read(Dragging(fake_nvml, 0.01), 0.01, FULL, share, is_limited=True).reading
    assert reading.reason == "time_limited"
    assert 1 <= len(reading.trials) < FULL.trials


def test_what_the_time_went_into(fake_nvml: FakeNvml) -> None:
    meter = make_meter(fake_nvml)
    load = SquareWave(fake_nvml, 0.002)
    begin_ns = fake_nvml.now_ns
    watch = meter.read(load, 0.002, QUICK, TrialShare.all_of(QUICK.trials))
    assert watch.stage_seconds.keys() == {"idle", "probe", "settle", "window"}
    assert sum(watch.stage_seconds.values()) == pytest.approx((fake_nvml.now_ns - begin_ns) / 1e9, rel=0.01)
    assert watch.stage_seconds["idle"] >= 10
    # The second case of a run knows the counter already.
    assert meter.read(load, 0.002, QUICK, TrialShare.all_of(QUICK.trials)).stage_seconds.keys() == {"settle", "window"}


@pytest.mark.parametrize("preset", [QUICK, FULL], ids=["quick", "full"])
@pytest.mark.parametrize("iteration_seconds", [0.001, 0.012, 0.05, 0.2, 0.9, 3.0])
def test_about_as_long_as_predicted(fake_nvml: FakeNvml, preset: EnergyPreset, iteration_seconds: float) -> None:
    """Time budgets and progress go by the prediction."""
    meter = make_meter(fake_nvml)
    load = SquareWave(fake_nvml, iteration_seconds, high=300.0, low=300.0)
    spent = meter.read(load, iteration_seconds, preset, TrialShare.all_of(preset.trials)).stage_seconds
    predicted = energy_seconds(preset, TrialShare.all_of(preset.trials), iteration_seconds)
    assert 0.85 < (spent["settle"] + spent["window"]) / predicted < 1.15


def test_calibration_of_an_earlier_worker_is_taken(fake_nvml: FakeNvml) -> None:
    first = make_meter(fake_nvml)
    load = SquareWave(fake_nvml, 0.002)
    reading = read(first, load)
    second = make_meter(fake_nvml)
    second.calibration = reading.calibration
    assert read(second, load).calibration == reading.calibration
    again = second.calibrate()
    assert reading.calibration is not None
    assert again.period_seconds == reading.calibration.period_seconds


def test_a_sign_of_life_for_each_trial(fake_nvml: FakeNvml) -> None:
    beats: list[int] = []
    load = SquareWave(fake_nvml, 0.002)
    share = TrialShare.all_of(QUICK.trials)
    make_meter(fake_nvml).read(load, 0.002, QUICK, share, beat=lambda: beats.append(fake_nvml.now_ns))
    assert len(beats) == QUICK.trials
    assert all(2e9 <= later - earlier < 3e9 for earlier, later in itertools.pairwise(beats))


def test_trace_covers_the_trials(fake_nvml: FakeNvml) -> None:
    load = SquareWave(fake_nvml, 0.002, high=300.0, low=300.0)
    watch = make_meter(fake_nvml).read(load, 0.002, QUICK, TrialShare.all_of(QUICK.trials))
    watts = [point.power_watts for point in watch.trace]
    assert watch.trace[0].seconds == 0
    assert watch.trace[-1].seconds == pytest.approx(watch.stage_seconds["window"], rel=0.02)
    assert statistics.median(level for level in watts if level is not None) == pytest.approx(300.0)
    assert all(point.temperature_celsius == 40 and point.sm_clock_mhz == 1980 for point in watch.trace)


def test_no_reading_is_ever_zero(fake_nvml: FakeNvml) -> None:
    """A board without power at all: the counter stands still and is said to."""
    fake_nvml.device(0).idle_watts = 0.0
    reading = read(make_meter(fake_nvml), SquareWave(fake_nvml, 0.002, high=0.0, low=0.0))
    assert (reading.status, reading.trials) == ("not_measured", ())


@pytest.mark.parametrize("preset", [QUICK, FULL])
def test_bias_bounds_every_noise_free_error(fake_nvml: FakeNvml, preset: EnergyPreset) -> None:
    for phase, seconds in itertools.product((0.0, 0.31, 0.77), (0.0007, 0.0113, 0.31)):
        part_time_board(fake_nvml, phase=phase)
        load = SquareWave(fake_nvml, seconds, high=300.0, low=300.0)
        reading = read(make_meter(fake_nvml), load, preset)
        assert reading.relative_bias is not None
        assert abs(relative_error(reading, load)) <= reading.relative_bias
        assert math.isfinite(reading.relative_bias)
