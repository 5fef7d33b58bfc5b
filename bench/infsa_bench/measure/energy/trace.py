"""What sampled power tells: its integral, and how fast it follows a load. Pure functions."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from infsa_bench.measure.energy.observer import Sample
from infsa_bench.record import EnergyWindow

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
