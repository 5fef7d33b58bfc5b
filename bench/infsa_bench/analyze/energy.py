"""Energy readings of a cell's replicates to joules per image. Pure functions; nothing is measured here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from infsa_bench.intervals import mean_half_width
from infsa_bench.record import EnergyReading, EnergyScope, EnergySource, EnergyStatus, EnergyTrial, crosscheck_gap

REL_CI_TARGET = 0.02
"""Half-width of the trials' interval, relative to their mean, above which a reading is of low confidence."""

SYSTEMATIC_RELATIVE = 0.05
"""How far a GPU board's power sensor may be off as a whole: a gain of its own, the same in every reading of that board.

It cancels in ratios on one board and is in no interval (Yang, Adamek and Armour, arXiv 2312.02741).
"""

POOLED_DOUBTS = frozenset({"wide_interval", "single_trial"})
"""Doubts about the number of trials: a worker has them about its own, but only the pool of all replicates counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySummary:
    """Energy of one cell, its replicates pooled. What was not measured is None, never zero.

    Attributes:
        reason: why it is of low confidence or not measured; None if and only if measured.
        detail: the same for people; None where nobody said.
        trials: number of trials, of all replicates together; None where nothing was measured.
        joules_per_image: mean over the trials.
        half_width_joules: of its 95 % interval, the bound of the bias in it; None for a single trial.
        systematic_relative: what the sensor's gain may add to that, relative; None where it is unknown.
        net_joules_per_image: less what the idle device would have taken in the same time; None without idle power.
        average_power_watts: joules over seconds, of all windows.
        idle_power_watts: median over the calibrations.
        window_images_per_second: of the same windows.
        power_capped_fraction: mean share of samples in which the driver held the clocks back for power.
        crosscheck_gap: integral of sampled power over the counter's joules, less 1; None where it was not sampled.
        change_per_trial: relative rise from one trial of a process to its next, by least squares; None without two
            trials in one process.
        temperature_low_celsius: lowest at a trial's begin or end.
        temperature_high_celsius: highest.
    """

    status: EnergyStatus
    reason: str | None
    detail: str | None
    source: EnergySource | None = None
    scope: EnergyScope | None = None
    preset: str | None = None
    trials: int | None = None
    joules_per_image: float | None = None
    half_width_joules: float | None = None
    systematic_relative: float | None = None
    net_joules_per_image: float | None = None
    average_power_watts: float | None = None
    idle_power_watts: float | None = None
    window_images_per_second: float | None = None
    power_capped_fraction: float | None = None
    crosscheck_gap: float | None = None
    change_per_trial: float | None = None
    temperature_low_celsius: int | None = None
    temperature_high_celsius: int | None = None

    @property
    def low_joules(self) -> float | None:
        """Lower end of the interval of ``joules_per_image``."""
        if self.joules_per_image is None or self.half_width_joules is None:
            return None
        return self.joules_per_image - self.half_width_joules

    @property
    def high_joules(self) -> float | None:
        """Upper end of the interval of ``joules_per_image``."""
        if self.joules_per_image is None or self.half_width_joules is None:
            return None
        return self.joules_per_image + self.half_width_joules


def pool_energy(readings: Sequence[EnergyReading], batch_size: int) -> EnergySummary:
    """Return what the readings of a cell's replicates, at least one, say together."""
    measured = [reading for reading in readings if reading.trials]
    if not measured:
        return EnergySummary(status="not_measured", reason=readings[0].reason, detail=readings[0].detail)
    values = [[trial.joules_per_iteration / batch_size for trial in reading.trials] for reading in measured]
    pooled = [value for of_one_process in values for value in of_one_process]
    trials = [trial for reading in measured for trial in reading.trials]
    windows = [window for trial in trials for window in trial.windows]
    mean = statistics.fmean(pooled)
    scatter = mean_half_width(pooled)
    bias = max(reading.relative_bias or 0.0 for reading in measured) * mean
    joules, seconds = sum(window.joules for window in windows), sum(window.seconds for window in windows)
    images_per_second = sum(window.iterations for window in windows) * batch_size / seconds
    calibrations = [reading.calibration for reading in measured if reading.calibration is not None]
    idle = [calibration.idle_watts for calibration in calibrations if calibration.idle_watts is not None]
    idle_watts = statistics.median(idle) if idle else None
    capped = [trial.power_capped_fraction for trial in trials if trial.power_capped_fraction is not None]
    temperatures = [celsius for trial in trials for celsius in _temperatures(trial)]
    doubts = _doubts(readings, mean, scatter)
    source = calibrations[0].source
    return EnergySummary(
        status="measured_low_confidence" if doubts else "measured",
        reason=next(iter(doubts), None),
        detail=next(iter(doubts.values()), None),
        source=source,
        scope=calibrations[0].scope,
        preset=measured[0].preset,
        trials=len(pooled),
        joules_per_image=mean,
        half_width_joules=None if scatter is None else math.hypot(scatter, bias),
        systematic_relative=None if source == "rapl" else SYSTEMATIC_RELATIVE,
        net_joules_per_image=None if idle_watts is None else mean - idle_watts / images_per_second,
        average_power_watts=joules / seconds,
        idle_power_watts=idle_watts,
        window_images_per_second=images_per_second,
        power_capped_fraction=statistics.fmean(capped) if capped else None,
        crosscheck_gap=crosscheck_gap(trials),
        change_per_trial=_change_per_trial(measured, values, mean),
        temperature_low_celsius=min(temperatures, default=None),
        temperature_high_celsius=max(temperatures, default=None),
    )


def _doubts(readings: Sequence[EnergyReading], mean: float, scatter: float | None) -> dict[str, str | None]:
    """Return every reason for low confidence, the first one first, with its detail where somebody gave one."""
    measured = [reading for reading in readings if reading.trials]
    doubts = [doubt for reading in measured for doubt in (*reading.doubts, reading.reason)]
    said = {reading.reason: reading.detail for reading in reversed(measured)}
    found = {doubt: said.get(doubt) for doubt in doubts if doubt is not None and doubt not in POOLED_DOUBTS}
    calibrations = [reading.calibration for reading in measured if reading.calibration is not None]
    sources = {f"{calibration.source} ({calibration.scope})" for calibration in calibrations}
    if len(sources) > 1:
        found["mixed_sources"] = "replicates were watched by " + " and ".join(sorted(sources))
    missing = [reading for reading in readings if not reading.trials]
    if missing:
        found["partly_measured"] = f"not measured in {len(missing)} of {len(readings)} processes: {missing[0].reason}"
    if scatter is None:
        found["single_trial"] = "one trial has no interval"
    elif scatter > REL_CI_TARGET * mean:
        found["wide_interval"] = f"the mean's 95 % interval is wider than +-{100 * REL_CI_TARGET:g} %"
    return found


def _temperatures(trial: EnergyTrial) -> list[int]:
    ends = (trial.temperature_begin_celsius, trial.temperature_end_celsius)
    return [celsius for celsius in ends if celsius is not None]


def _change_per_trial(
    readings: Sequence[EnergyReading], values: Sequence[Sequence[float]], mean: float
) -> float | None:
    """Return the common slope within processes: differences between processes are not drift."""
    covariance = variance = 0.0
    for reading, of_one_process in zip(readings, values, strict=True):
        order = sorted(range(len(of_one_process)), key=lambda index: reading.trials[index].begin_seconds)
        middle, centre = (len(order) - 1) / 2, statistics.fmean(of_one_process)
        for rank, index in enumerate(order):
            covariance += (rank - middle) * (of_one_process[index] - centre)
            variance += (rank - middle) ** 2
    return covariance / variance / mean if variance and mean else None
