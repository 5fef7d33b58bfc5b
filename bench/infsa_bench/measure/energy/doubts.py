"""What is to be doubted of an energy reading, and the words for it. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from infsa_bench.intervals import mean_half_width
from infsa_bench.measure.energy.observer import Sample
from infsa_bench.record import EnergyTrial, crosscheck_gap

CROSSCHECK_GAP = 0.10
DRIFT_CELSIUS = 5
"""Change of temperature over the last planned number of trials; leakage then changes power by about 2 %."""

TARGET_HALF_WIDTH = 0.02
"""Relative to the mean; with a wider interval there are up to twice as many trials."""

DETAILS = {
    "shared": "other processes used the device",
    "restless_idle": "power came and went while the device should have been idle",
    "throttled": "heat or hardware protection held the clocks back",
    "counter_vs_power": f"counter and sampled power differ by more than {CROSSCHECK_GAP:.0%}",
    "temperature_drift": f"the temperature changed by more than {DRIFT_CELSIUS} degrees",
    "single_trial": "one trial only: no interval",
    "wide_interval": f"the interval is wider than {TARGET_HALF_WIDTH:.0%} of the mean to each side",
    "time_limited": "the time budget ended the trials",
    "sampled_power": "no energy counter: sampled power",
    "counter_unsupported": "this GPU has no energy counter: sampled power",
    "counter_frozen": "the energy counter stands still: sampled power",
    "slow_counter": "the counter is updated less than four times a second",
}


def trial_doubts(
    done: Sequence[EnergyTrial], count: int, samples: Sequence[Sample], meter_doubts: tuple[str, ...]
) -> list[str]:
    """Return what is to be doubted of finished trials, ``count`` of which were planned."""
    gap = crosscheck_gap(done)
    found = {
        **dict.fromkeys(meter_doubts, True),
        "shared": "shared" in meter_doubts or any((sample.foreign_processes or 0) > 0 for sample in samples),
        "throttled": any(trial.throttle_reasons for trial in done),
        "counter_vs_power": gap is not None and abs(gap) > CROSSCHECK_GAP,
        "temperature_drift": _drift_celsius(done[-count:]) > DRIFT_CELSIUS,
        "single_trial": len(done) == 1,
        "wide_interval": len(done) > 1 and _half_width(done) > TARGET_HALF_WIDTH,
    }
    return [name for name, is_so in found.items() if is_so]


def _half_width(trials: Sequence[EnergyTrial]) -> float:
    """Half of the interval of the mean over trials, relative to the mean."""
    values = [trial.joules_per_iteration for trial in trials]
    half_width = mean_half_width(values)
    return 0.0 if half_width is None else half_width / statistics.mean(values)


def _drift_celsius(trials: Sequence[EnergyTrial]) -> int:
    """How far the temperatures at the trials' begins and ends are apart."""
    known = [
        celsius for trial in trials for celsius in (trial.temperature_begin_celsius, trial.temperature_end_celsius)
    ]
    temperatures = [celsius for celsius in known if celsius is not None]
    return max(temperatures) - min(temperatures) if temperatures else 0


def is_settled(trials: Sequence[EnergyTrial], count: int) -> bool:
    """Tell whether the interval is narrow, and the temperature steady, at the end of the planned trials."""
    if len(trials) < 2:
        return True
    return _half_width(trials) <= TARGET_HALF_WIDTH and _drift_celsius(trials[-count:]) <= DRIFT_CELSIUS
