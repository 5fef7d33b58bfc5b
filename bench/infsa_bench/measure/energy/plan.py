"""How a trial is cut into windows so that a sensor that looks only part of the time sees a fair share of the work.

The sensors behind NVML update every ``period`` and average over a part of it (a quarter, on an A100 or H100). An
iteration whose length beats with the period is then seen always in the same place: one window can be off by 45 %.
Segments that start at evenly spread phases, each over a whole number of iterations, see all of it (Yang, Adamek,
Armour, SC'24, for the sensors; the spacing and its bounds are checked by simulation in the tests). Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from infsa_bench.protocol import (
    CONTINUOUS_BELOW_SECONDS,
    SLOW_WATCHED_SECONDS,
    SLOW_WINDOW_SECONDS,
    SLOW_WINDOWS,
    VERY_SLOW_WATCHED_SECONDS,
    EnergyPreset,
)

RISE_SECONDS = 0.15
AVERAGED_RISE_SECONDS = 1.1
SLOW_RISE_SECONDS = 0.5
"""A sensor that rises more slowly than this reports an average over a second."""

UNKNOWN_PERIOD_SECONDS = 0.1
"""Stands in for the period where there is no counter: plans are then only a number of seconds."""

WHOLE_ENOUGH = 0.002
"""Part of a window that may be left of an iteration where a shorter window has no less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """One window: the load starts ``offset_seconds`` after an update of the counter and is watched for ``ticks``."""

    offset_seconds: float
    ticks: int


def plan_trial(
    preset: EnergyPreset, *, iteration_seconds: float, period_seconds: float, trial: int, trials: int
) -> tuple[WindowPlan, ...]:
    """Return the windows of trial number ``trial`` out of ``trials``."""
    window_ticks = preset.window_seconds / period_seconds
    if iteration_seconds < CONTINUOUS_BELOW_SECONDS:
        # The trials share the phases among them.
        offset = iteration_seconds * trial / trials
        return (WindowPlan(offset_seconds=offset, ticks=max(1, round(window_ticks))),)
    # Beyond the period, an offset by part of an iteration could be a whole number of periods, which shifts nothing.
    stride = min(iteration_seconds, period_seconds)
    if iteration_seconds > VERY_SLOW_WATCHED_SECONDS and preset.name != "quick":
        least = math.ceil(max(preset.window_seconds, iteration_seconds) / period_seconds)
        ticks = whole_iteration_ticks(least, iteration_seconds=iteration_seconds, period_seconds=period_seconds)
        return (WindowPlan(offset_seconds=stride * trial / trials, ticks=ticks),)
    if iteration_seconds > SLOW_WATCHED_SECONDS and preset.name == "quick":
        count, seconds = SLOW_WINDOWS, max(SLOW_WINDOW_SECONDS, iteration_seconds)
    else:
        count, seconds = preset.segments, max(preset.window_seconds / preset.segments, iteration_seconds)
    least = max(1, math.floor(seconds / period_seconds + 1e-6))
    ticks = whole_iteration_ticks(least, iteration_seconds=iteration_seconds, period_seconds=period_seconds)
    return tuple(WindowPlan(offset_seconds=stride * index / count, ticks=ticks) for index in range(count))


def whole_iteration_ticks(least: int, *, iteration_seconds: float, period_seconds: float) -> int:
    """Return the number of ticks from ``least`` to three times that which is nearest to whole iterations."""

    def left_over(ticks: int) -> float:
        iterations = ticks * period_seconds / iteration_seconds
        return abs(iterations - max(1, round(iterations))) / iterations

    candidates = range(least, 3 * least + 1)
    best = min(map(left_over, candidates))
    return next(ticks for ticks in candidates if left_over(ticks) <= best + WHOLE_ENOUGH)


def discarded_seconds(period_seconds: float, rise_seconds: float | None) -> float:
    """Return how long after a start of the load the sensor may still show what was before."""
    is_averaged = rise_seconds is not None and rise_seconds > SLOW_RISE_SECONDS
    return max(2 * period_seconds, AVERAGED_RISE_SECONDS if is_averaged else RISE_SECONDS)
