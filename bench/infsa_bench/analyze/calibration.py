"""How often the rules of a gate raise a false alarm, and find a slowdown, in simulated suites. Pure functions.

A suite is one build against itself, or against one in which a single cell is slower. Processes differ by a normally
distributed share with the cell's own standard deviation; within a process iterations follow each other (AR(1)). The
rules that decide are those of :mod:`infsa_bench.analyze.decisions`, the very functions of ``gate`` and ``compare``;
beside them stand rules that other tools use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import signal, special, stats

from infsa_bench.analyze.decisions import (
    ALPHA,
    STORED_ALPHA,
    Array,
    Mask,
    benjamini_hochberg,
    change,
    confirmed,
    fit_prior,
    moderated,
    moments,
    pooled,
    screened,
)
from infsa_bench.analyze.metrics import TIMING_MARGIN

DEVIATIONS = (0.005, 0.01, 0.02, 0.04)
SLOWDOWNS = (0.07, 0.10)
MARGIN = math.log1p(TIMING_MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is simulated.

    Attributes:
        suites: how many, at each level of noise.
        cells: in each suite.
        screening: processes a side that all cells have.
        confirming: fresh processes a side that suspects have.
        cell_spread: standard deviation of the logarithm of the cells' noise; its median is the level of noise.
        iterations: timed in each process.
        iteration_deviation: of one iteration from its process.
        autocorrelation: of one iteration with the one before.
    """

    suites: int = 1000
    seed: int = 0
    cells: int = 300
    screening: int = 5
    confirming: int = 10
    cell_spread: float = 0.4
    iterations: int = 100
    iteration_deviation: float = 0.01
    autocorrelation: float = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRow:
    """What came of one rule at one level of noise; rates are shares of suites, unless they say otherwise.

    Attributes:
        flagged_cells: share of unchanged cells that were flagged, as worse or (where a rule has two sides) as better.
        alarms: suites without any change in which a cell was called worse.
        alarms_high: upper end of the exact 95 % interval of that rate, one-sided.
        power_7: suites in which the one cell that was 7 % slower was found; so is the next.
        suspects: cells a suite that were measured again, on average.
    """

    rule: str
    deviation: float
    suites: int
    flagged_cells: float
    alarms: float
    alarms_high: float
    power_7: float
    power_10: float
    suspects: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suite:
    """Logarithms of times of all cells, with ``slow`` added to the first one's second side; medians by process."""

    base: Array
    new: Array
    base_medians: Array
    new_medians: Array
    confirm: Callable[[Mask], tuple[Array, Array]]
    slow: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flags:
    """What a rule says: cells that are worse, those that it flags at all, and how many were measured again."""

    worse: Mask
    flagged: Mask
    suspects: int | None = None


def calibrate(setup: Setup, deviation: float, rules: Iterable[str] | None = None) -> list[CalibrationRow]:
    """Return what comes of each rule at one level of noise; ``rules`` names some of :data:`RULES`, all if None."""
    chosen = {rule: RULES[rule] for rule in (RULES if rules is None else rules)}
    # The same suites whatever other levels are simulated.
    generator = np.random.default_rng([setup.seed, round(deviation * 1e6)])
    counts = {rule: _Counts() for rule in chosen}
    for _ in range(setup.suites):
        deviations = deviation * np.exp(setup.cell_spread * generator.normal(size=setup.cells))
        base, new = (_iterations(setup, deviations, setup.screening, generator) for _ in range(2))
        base_medians, new_medians = _medians(base), _medians(new)
        for slow in (0.0, *map(math.log1p, SLOWDOWNS)):

            def confirm(suspects: Mask, slow: float = slow, deviations: Array = deviations) -> tuple[Array, Array]:
                sides = [_iterations(setup, deviations[suspects], setup.confirming, generator) for _ in range(2)]
                sides[1] += np.where(np.flatnonzero(suspects) == 0, slow, 0.0)[:, None, None]
                return sides[0], sides[1]

            changed, changed_medians = new.copy(), new_medians.copy()
            changed[0] += slow
            changed_medians[0] += slow
            suite = _Suite(
                base=base,
                new=changed,
                base_medians=base_medians,
                new_medians=changed_medians,
                confirm=confirm,
                slow=slow,
            )
            for rule, decide in chosen.items():
                counts[rule].take(suite, decide(suite))
    return [counts[rule].row(rule, deviation, setup.suites) for rule in chosen]


def _iterations(setup: Setup, deviations: Array, processes: int, generator: np.random.Generator) -> Array:
    """Return logarithms of times: cells x processes x iterations."""
    shape = (len(deviations), processes, setup.iterations)
    innovations = generator.standard_normal(shape)
    rest = math.sqrt(1 - setup.autocorrelation**2)
    innovations[..., 1:] *= rest
    # The first one has the scatter of all: the series is stationary from its beginning.
    noise = signal.lfilter([1.0], [1.0, -setup.autocorrelation], innovations, axis=-1)
    effects = deviations[:, None, None] * generator.standard_normal((*shape[:2], 1))
    return np.asarray(effects + setup.iteration_deviation * noise, dtype=float)


class _Counts:
    """Adds up what a rule said about suites."""

    def __init__(self) -> None:
        self._alarms = self._suites = self._suspects = 0
        self._flagged = 0.0
        self._found: dict[float, int] = {}
        self._knows_suspects = False

    def take(self, suite: _Suite, flags: _Flags) -> None:
        """Count one suite."""
        if suite.slow:
            self._found[suite.slow] = self._found.get(suite.slow, 0) + bool(flags.worse[0])
            return
        self._suites += 1
        self._alarms += bool(flags.worse.any())
        self._flagged += float(flags.flagged.mean())
        if flags.suspects is not None:
            self._knows_suspects = True
            self._suspects += flags.suspects

    def row(self, rule: str, deviation: float, suites: int) -> CalibrationRow:
        """Return the rates."""
        power = {slow: self._found.get(math.log1p(slow), 0) / suites for slow in SLOWDOWNS}
        return CalibrationRow(
            rule=rule,
            deviation=deviation,
            suites=suites,
            flagged_cells=self._flagged / suites,
            alarms=self._alarms / suites,
            alarms_high=upper_bound(self._alarms, suites),
            power_7=power[0.07],
            power_10=power[0.10],
            suspects=self._suspects / suites if self._knows_suspects else None,
        )


def upper_bound(events: int, trials: int) -> float:
    """Return the upper end of the one-sided exact 95 % interval of a rate (Clopper and Pearson)."""
    return 1.0 if events == trials else float(special.betaincinv(events + 1, trials - events, 0.95))


def _medians(times: Array) -> Array:
    return np.asarray(np.median(times, axis=-1))


def two_stages(suite: _Suite) -> _Flags:
    """Screen all cells, measure the suspects again, decide by the fresh values alone: what ``gate`` does."""
    suspects = screened(moments(suite.base_medians), moments(suite.new_medians), MARGIN)
    worse = np.zeros(len(suspects), dtype=bool)
    if suspects.any():
        base, new = suite.confirm(suspects)
        worse[suspects] = confirmed(moments(_medians(base)), moments(_medians(new)), MARGIN)
    return _Flags(worse=worse, flagged=worse, suspects=int(suspects.sum()))


def _two_stages_on_stored_base(suite: _Suite) -> _Flags:
    """The same where the base cannot be measured again: its stored values stand in both stages."""
    stored = moments(suite.base_medians)
    suspects = screened(stored, moments(suite.new_medians), MARGIN)
    worse = np.zeros(len(suspects), dtype=bool)
    if suspects.any():
        _, new = suite.confirm(suspects)
        worse[suspects] = confirmed(moments(suite.base_medians[suspects]), moments(_medians(new)), MARGIN, STORED_ALPHA)
    return _Flags(worse=worse, flagged=worse, suspects=int(suspects.sum()))


def _screen_only(suite: _Suite) -> _Flags:
    suspects = screened(moments(suite.base_medians), moments(suite.new_medians), MARGIN)
    return _Flags(worse=suspects, flagged=suspects)


def moderated_tests(suite: _Suite) -> _Flags:
    """Judge two finished sides: what ``compare`` does."""
    base, new = moments(suite.base_medians), moments(suite.new_medians)
    spread = pooled(base, new)
    result = change(base, new, moderated(spread, fit_prior(spread)), MARGIN)
    worse, better = (benjamini_hochberg(p_values) < ALPHA for p_values in (result.p_worse, result.p_better))
    return _Flags(worse=worse, flagged=worse | better)


def _single_processes(suite: _Suite) -> tuple[Array, Array]:
    """One process of either side; of a suite with a slower cell that cell alone, which is all that counts there."""
    cells = slice(1) if suite.slow else slice(None)
    return suite.base[cells, 0], suite.new[cells, 0]


def _threshold(share: float) -> Callable[[_Suite], _Flags]:
    def decide(suite: _Suite) -> _Flags:
        base, new = _single_processes(suite)
        difference = _medians(new) - _medians(base)
        return _Flags(worse=difference > math.log1p(share), flagged=np.abs(difference) > math.log1p(share))

    return decide


def _on_iterations(test: Callable[[Array, Array], Array], level: float) -> Callable[[_Suite], _Flags]:
    def decide(suite: _Suite) -> _Flags:
        base, new = _single_processes(suite)
        flagged = test(base, new) < level
        return _Flags(worse=flagged & (_medians(new) > _medians(base)), flagged=flagged)

    return decide


def _mann_whitney(base: Array, new: Array) -> Array:
    return np.asarray(stats.mannwhitneyu(base, new, axis=1, method="asymptotic").pvalue)


def _students(base: Array, new: Array) -> Array:
    return np.asarray(stats.ttest_ind(base, new, axis=1).pvalue)


TWO_STAGES = "two stages (gate)"
STORED_BASE = "two stages, stored base (gate without the other build)"
MODERATED = "moderated t, Benjamini-Hochberg (compare)"

RULES: Mapping[str, Callable[[_Suite], _Flags]] = {
    TWO_STAGES: two_stages,
    STORED_BASE: _two_stages_on_stored_base,
    MODERATED: moderated_tests,
    "stage 1 alone": _screen_only,
    "threshold 7 %, one process a side": _threshold(0.07),
    "threshold 3 %, one process a side": _threshold(0.03),
    "Mann-Whitney p < 0.002 on iterations": _on_iterations(_mann_whitney, 0.002),
    "t-test p < 0.05 on iterations": _on_iterations(_students, 0.05),
}
"""Ours first, then what is wrong with simpler ones."""
