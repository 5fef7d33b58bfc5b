"""What was watched in a trial: the integral of power, how fast it follows a load, the trial as it is recorded."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.machine import SampledState
from infsa_bench.measure.energy.observer import Sample
from infsa_bench.measure.nvml import THROTTLE_REASONS
from infsa_bench.record import EnergyTrial, EnergyWindow, TracePoint

GAP_SPACINGS = 10
GAP_SHARE = 0.05
"""A gap between samples is too long above both: so many usual spacings, and this share of what is integrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTrial:
    """One trial: its windows, and the GPU's samples from its start to its end."""

    windows: tuple[EnergyWindow, ...]
    samples: tuple[Sample, ...]


def power_joules(samples: tuple[Sample, ...], begin_ns: int, end_ns: int) -> float | None:
    """Return the integral of sampled power between two moments.

    None where the samples do not reach around them, or leave a gap that is too long to be bridged by a straight line.
    """
    points = [(sample.ns, sample.power_watts) for sample in samples if sample.power_watts is not None]
    if len(points) < 2 or points[0][0] > begin_ns or points[-1][0] < end_ns:
        return None
    times = np.array([ns for ns, _ in points])
    watts = np.array([power for _, power in points])
    gaps = np.diff(times)
    gaps_inside = gaps[(times[1:] > begin_ns) & (times[:-1] < end_ns)]
    if gaps_inside.max() > max(GAP_SPACINGS * np.median(gaps), GAP_SHARE * (end_ns - begin_ns)):
        return None
    inside = times[(times > begin_ns) & (times < end_ns)]
    corners = np.concatenate([[begin_ns], inside, [end_ns]])
    return float(np.trapezoid(np.interp(corners, times, watts), corners / 1e9))


def rise_seconds(samples: tuple[Sample, ...], idle_watts: float | None) -> float | None:
    """Return how long sampled power took from 10 to 90 % of the way from idle to its final third's median.

    None where the load draws too little more than idle to tell, or power was not sampled.
    """
    points = [(sample.ns / 1e9, sample.power_watts) for sample in samples if sample.power_watts is not None]
    if idle_watts is None or len(points) < 3:
        return None
    final_watts = statistics.median(watts for _, watts in points[-(len(points) // 3) :])
    swing_watts = final_watts - idle_watts
    if swing_watts < 0.2 * final_watts:
        return None
    reached = {
        share: next((seconds for seconds, watts in points if watts >= idle_watts + share * swing_watts), None)
        for share in (0.1, 0.9)
    }
    if reached[0.1] is None or reached[0.9] is None:
        return None
    return reached[0.9] - reached[0.1]


def record_trial(watched: WatchedTrial, begin_seconds: float) -> EnergyTrial:
    """Return a trial as it is recorded.

    Raises:
        MeterUnavailableError: no energy at all in it (``counter_frozen``).
    """
    if sum(window.joules for window in watched.windows) <= 0:
        raise MeterUnavailableError("counter_frozen", "the energy counter has not moved in a whole trial")
    samples = watched.samples
    clocks = [sample.sm_clock_mhz for sample in samples if sample.sm_clock_mhz is not None]
    temperatures = [sample.temperature_celsius for sample in samples if sample.temperature_celsius is not None]
    capped = ["sw_power_cap" in sample.event_reasons for sample in samples]
    seen = {reason for sample in samples for reason in sample.event_reasons}
    return EnergyTrial(
        begin_seconds=begin_seconds,
        windows=watched.windows,
        temperature_begin_celsius=temperatures[0] if temperatures else None,
        temperature_end_celsius=temperatures[-1] if temperatures else None,
        sm_clock_mhz=statistics.median(clocks) if clocks else None,
        power_capped_fraction=sum(capped) / len(capped) if capped else None,
        throttle_reasons=tuple(sorted(seen & THROTTLE_REASONS)),
    )


def sampled_state(samples: Sequence[Sample]) -> SampledState | None:
    """Return what samples say of the GPU over the time that they span; None without any."""
    if not samples:
        return None
    clocks = [sample.sm_clock_mhz for sample in samples if sample.sm_clock_mhz is not None]
    reasons = {reason for sample in samples for reason in sample.event_reasons}
    return SampledState(
        samples=len(samples),
        sm_clock_mhz=statistics.median(clocks) if clocks else None,
        temperature_celsius=max(
            (sample.temperature_celsius for sample in samples if sample.temperature_celsius is not None), default=None
        ),
        event_reasons=tuple(sorted(reasons)),
        power_capped_fraction=sum("sw_power_cap" in sample.event_reasons for sample in samples) / len(samples),
        foreign_processes=max(
            (sample.foreign_processes for sample in samples if sample.foreign_processes is not None), default=None
        ),
    )


def trace_points(samples: Sequence[Sample]) -> tuple[TracePoint, ...]:
    """Return samples as they are recorded, seconds counted from the first."""
    return tuple(
        TracePoint(
            seconds=(sample.ns - samples[0].ns) / 1e9,
            power_watts=sample.power_watts,
            sm_clock_mhz=sample.sm_clock_mhz,
            temperature_celsius=sample.temperature_celsius,
            event_reasons=sample.event_reasons,
        )
        for sample in samples
    )
