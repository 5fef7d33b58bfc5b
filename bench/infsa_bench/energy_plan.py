"""How long energy is watched, and how that is cut so that a sensor that looks part of the time sees a fair share.

The sensors behind NVML update every ``period`` and average over a part of it (a quarter, on an A100 or H100). An
iteration whose length beats with the period is then seen always in the same place: one window can be off by 45 %.
Segments that start at evenly spread phases, each over a whole number of iterations, see all of it (Yang, Adamek,
Armour, SC'24, for the sensors; the spacing and its bounds are checked by simulation in the tests). Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from infsa_bench.protocol import Protocol

CONTINUOUS_BELOW_SECONDS = 0.005
"""Iterations shorter than this are averaged within one look of the sensor: one continuous window."""

SLOW_SECONDS = 0.1
"""Quick preset: longer iterations are watched in few windows of whole iterations. In eight short segments, some of up
to twice this length would be off by more than 2 % (the tests fail with 0.2).
"""

VERY_SLOW_SECONDS = 2.0
"""So are iterations longer than this in any preset, in fewer trials."""

SLOW_WINDOWS = 4
SLOW_WINDOW_SECONDS = 1.0
MAX_VERY_SLOW_TRIALS = 3

RISE_SECONDS = 0.15
AVERAGED_RISE_SECONDS = 1.1
SLOW_RISE_SECONDS = 0.5
"""A sensor that rises more slowly than this reports an average over a second."""

UNKNOWN_PERIOD_SECONDS = 0.1
"""Stands in for the period where there is no counter, or none whose updates tell the sensor's."""

WHOLE_ENOUGH = 0.002
"""Part of a window that may be left of an iteration where a shorter window has no less."""

SETTLE_SECONDS = 1.0
SETTLE_PERIODS = 10

EnergyChoice = Literal["auto", "quick", "full", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPreset:
    """How long energy is watched: so many trials of so many seconds each, cut into segments where iterations are long
    enough to beat with the sensor.
    """

    name: str
    trials: int
    window_seconds: float
    segments: int


ENERGY_PRESETS: Mapping[str, EnergyPreset] = {
    "quick": EnergyPreset(name="quick", trials=3, window_seconds=2.0, segments=8),
    "full": EnergyPreset(name="full", trials=5, window_seconds=5.0, segments=8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialShare:
    """The trials of a cell that fall to one process: ``count`` of ``total``, from number ``first`` on."""

    first: int
    count: int
    total: int

    @classmethod
    def all_of(cls, trials: int) -> Self:
        """Return the share of a process that has all of so many trials to itself."""
        return cls(first=0, count=trials, total=trials)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """One window: the load starts ``offset_seconds`` after an update of the counter and is watched for ``ticks``."""

    offset_seconds: float
    ticks: int


def energy_preset(choice: EnergyChoice, protocol: Protocol) -> EnergyPreset | None:
    """Return the preset that ``--energy`` stands for, None for none."""
    if choice == "none":
        return None
    return ENERGY_PRESETS[protocol.energy if choice == "auto" else choice]


def trials_of_replicate(preset: EnergyPreset, replicate: int, replicates: int) -> TrialShare:
    """Return which trials fall to one replicate; every replicate has at least one.

    Each replicate passes over the whole plan, so trials spread over replicates are interleaved over cells: slow
    changes of the machine (heat, another tenant) do not fall on one mechanism.
    """
    total = max(preset.trials, replicates)
    share, rest = divmod(total, replicates)
    first = replicate * share + min(replicate, rest)
    return TrialShare(first=first, count=share + (1 if replicate < rest else 0), total=total)


def number_of_trials(preset: EnergyPreset, trials: int, iteration_seconds: float) -> int:
    """Return how many of so many trials an iteration of that length can have; the quick preset has one of a very slow
    one.
    """
    if iteration_seconds <= VERY_SLOW_SECONDS:
        return trials
    return 1 if preset.name == "quick" else min(trials, MAX_VERY_SLOW_TRIALS)


def plan_trial(
    preset: EnergyPreset, *, iteration_seconds: float, period_seconds: float, trial: int, total: int
) -> tuple[WindowPlan, ...]:
    """Return the windows of trial number ``trial`` out of ``total``, all replicates together."""
    # Beyond the period, an offset by part of an iteration could be a whole number of periods, which shifts nothing.
    stride = min(iteration_seconds, period_seconds)
    count, seconds = _windows(preset, iteration_seconds)
    if iteration_seconds < CONTINUOUS_BELOW_SECONDS:
        # The trials share the phases among them.
        ticks = max(1, round(seconds / period_seconds))
        return (WindowPlan(offset_seconds=stride * (trial % total) / total, ticks=ticks),)
    least = max(1, math.floor(seconds / period_seconds + 1e-6))
    ticks = whole_iteration_ticks(least, iteration_seconds=iteration_seconds, period_seconds=period_seconds)
    return tuple(WindowPlan(offset_seconds=stride * index / count, ticks=ticks) for index in range(count))


def _windows(preset: EnergyPreset, iteration_seconds: float) -> tuple[int, float]:
    """How many windows a trial has, and how long each is at the least."""
    if iteration_seconds < CONTINUOUS_BELOW_SECONDS:
        return 1, preset.window_seconds
    is_slow = preset.name == "quick" and iteration_seconds > SLOW_SECONDS
    if is_slow or iteration_seconds > VERY_SLOW_SECONDS:
        return SLOW_WINDOWS, max(SLOW_WINDOW_SECONDS, iteration_seconds)
    return preset.segments, max(preset.window_seconds / preset.segments, iteration_seconds)


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


def settle_seconds(period_seconds: float) -> float:
    """Return how long the load runs before the first trial."""
    return max(SETTLE_SECONDS, SETTLE_PERIODS * period_seconds)


def energy_seconds(
    preset: EnergyPreset,
    share: TrialShare,
    iteration_seconds: float,
    *,
    period_seconds: float = UNKNOWN_PERIOD_SECONDS,
    rise_seconds: float | None = None,
) -> float:
    """Return about how long the planned trials of one process take, settling included: the same plan, added up.

    Before a window there is a wait of up to a period for its phase, and after what is discarded another one for an
    update; after it, the iteration that is still running.
    """
    seconds = settle_seconds(period_seconds) + period_seconds + iteration_seconds
    for trial in range(number_of_trials(preset, share.count, iteration_seconds)):
        plans = plan_trial(
            preset,
            iteration_seconds=iteration_seconds,
            period_seconds=period_seconds,
            trial=share.first + trial,
            total=share.total,
        )
        for plan in plans:
            waiting = 2 * period_seconds + discarded_seconds(period_seconds, rise_seconds)
            seconds += waiting + plan.ticks * period_seconds + iteration_seconds
    return seconds
