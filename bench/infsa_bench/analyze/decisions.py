"""What replicates say about a change: tests beyond a margin, and what many of them together are worth. Pure functions.

Values are logarithms of what one process (or one trial of energy) found, oriented so that more is worse. Everything
works on arrays with one entry a cell, so that a gate and the simulation that calibrates it run the same code.

The null hypothesis is "worse by no more than the margin". Testing for any change and then filtering by size would
raise false alarms among many real changes that are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ALPHA = 0.05
"""Of the screen, uncorrected; the false discovery rate of a comparison; the family-wise error rate of a gate."""

STORED_ALPHA = 0.02
"""In the place of it where the base's stored values stand in both stages: their own error makes suspects and then
confirms them. Simulated (``make calibrate``), the family-wise error rate then stays below 5 % up to a noise of 4 %.
"""

CONFIDENCE = 0.95
POWER = 0.8
LEAST_VARIANCE = 1e-8
"""Of a logarithm: no clock is better than 0.01 %, and equal samples do not make a difference certain."""

MOST_DEGREES = 1e6
"""Degrees of freedom that stand for all of them."""

MIN_PRIOR_CELLS = 5
"""Fewer cells say nothing of how the variances of cells scatter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean, variance and number of the values of one side, an entry a cell. One value has no variance: it is zero."""

    mean: Array
    variance: Array
    count: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Variance of a single value and its degrees of freedom, an entry a cell; zero degrees: not known."""

    variance: Array
    degrees: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What other cells say about a cell's variance: as much as ``degrees`` values around ``variance`` would."""

    degrees: float
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How much worse the second side is, an entry a cell.

    Attributes:
        difference: of the means.
        standard_error: of the difference.
        degrees: of its Student's t.
        p_worse: of the null hypothesis "worse by no more than the margin".
        p_better: of "better by no more than the margin".
        low: of the two-sided 95 % interval of the difference.
        high: of the same.
    """

    difference: Array
    standard_error: Array
    degrees: Array
    p_worse: Array
    p_better: Array
    low: Array
    high: Array


def moments(values: Sequence[Sequence[float]] | Array) -> Moments:
    """Return the moments of each cell's values; a plain array has a row a cell."""
    if isinstance(values, np.ndarray):
        count = values.shape[-1]
        return Moments(
            mean=values.mean(axis=-1), variance=values.var(axis=-1, ddof=1), count=np.full(values.shape[:-1], count)
        )
    return Moments(
        mean=np.array([np.mean(cell) for cell in values], dtype=float),
        variance=np.array([np.var(cell, ddof=1) if len(cell) > 1 else 0.0 for cell in values], dtype=float),
        count=np.array([len(cell) for cell in values], dtype=float),
    )


def pooled(base: Moments, new: Moments) -> Spread:
    """Return the common variance of the two sides."""
    degrees = np.asarray(base.count + new.count - 2, dtype=float)
    total = (base.count - 1) * base.variance + (new.count - 1) * new.variance
    variance = np.divide(total, degrees, out=np.zeros_like(total), where=degrees > 0)
    return Spread(variance=np.maximum(variance, LEAST_VARIANCE), degrees=degrees)


def fit_prior(spread: Spread) -> Prior | None:
    """Return the scaled inverse chi-squared prior of the cells' variances; None from too few cells.

    From the mean and variance of the logarithms of the sample variances (Smyth 2004, section 6.2).
    """
    known = spread.degrees > 0
    if known.sum() < MIN_PRIOR_CELLS:
        return None
    half = spread.degrees[known] / 2
    centred = np.log(spread.variance[known]) - special.digamma(half) + np.log(half)
    excess = float(np.var(centred, ddof=1) - np.mean(special.polygamma(1, half)))
    if excess <= 0:
        # No more scatter than sampling alone makes: all cells have one variance.
        return Prior(degrees=MOST_DEGREES, variance=float(np.exp(np.mean(centred))))
    degrees = min(2 * inverse_trigamma(excess), MOST_DEGREES)
    shift = float(special.digamma(degrees / 2)) - math.log(degrees / 2)
    return Prior(degrees=degrees, variance=float(np.exp(np.mean(centred) + shift)))


def inverse_trigamma(value: float) -> float:
    """Return the x above zero whose trigamma is ``value``, by Newton's method on its reciprocal."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x


def moderated(spread: Spread, prior: Prior | None) -> Spread:
    """Return the cells' variances drawn towards what the other cells say; unchanged without a prior."""
    if prior is None:
        return spread
    degrees = spread.degrees + prior.degrees
    variance = (spread.degrees * spread.variance + prior.degrees * prior.variance) / degrees
    return Spread(variance=variance, degrees=degrees)


def change(base: Moments, new: Moments, spread: Spread, margin: float | Array) -> Change:
    """Test how much worse ``new`` is than ``base``, against a margin to either side."""
    difference = new.mean - base.mean
    standard_error = np.sqrt(spread.variance * (1 / base.count + 1 / new.count))
    degrees = np.clip(spread.degrees, 1, MOST_DEGREES)
    half_width = special.stdtrit(degrees, (1 + CONFIDENCE) / 2) * standard_error
    return Change(
        difference=difference,
        standard_error=standard_error,
        degrees=degrees,
        p_worse=special.stdtr(degrees, -(difference - margin) / standard_error),
        p_better=special.stdtr(degrees, -(-difference - margin) / standard_error),
        low=difference - half_width,
        high=difference + half_width,
    )


def screened(base: Moments, new: Moments, margin: float | Array) -> Mask:
    """Tell which cells are suspected to be worse: stage 1 of a gate, one-sided and uncorrected.

    Among 300 unchanged cells some always are. What they cost is to be measured again.
    """
    return change(base, new, pooled(base, new), margin).p_worse < ALPHA


def confirm(base: Moments, new: Moments, margin: float | Array) -> tuple[Change, Array]:
    """Test suspects by fresh values only, and adjust by Holm over all of them: stage 2 of a gate."""
    result = change(base, new, pooled(base, new), margin)
    return result, holm(result.p_worse)


def confirmed(base: Moments, new: Moments, margin: float | Array, alpha: float = ALPHA) -> Mask:
    """Tell which suspects are worse."""
    return confirm(base, new, margin)[1] < alpha


def holm(p_values: Array) -> Array:
    """Return p-values adjusted by Holm: below alpha, with probability alpha at most, for any true null hypothesis."""
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(count, 0, -1))
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p_values: Array) -> Array:
    """Return p-values adjusted by Benjamini and Hochberg: those below q are false in a share of q at most."""
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    scaled = p_values[order] * count / np.arange(1, count + 1)
    stepped = np.minimum.accumulate(scaled[::-1])[::-1]
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def detectable(
    deviation: float,
    degrees: float,
    base_count: float,
    new_count: float,
    margin: float,
    *,
    tests: int,
    alpha: float = ALPHA,
) -> float:
    """Return the least worsening, as a ratio less 1, that is found in four of five times, alone among ``tests`` cells.

    ``deviation`` is the standard deviation of a logarithm. By the noncentral t distribution, that of the statistic
    where the worsening is there.
    """
    degrees = min(max(degrees, 1.0), MOST_DEGREES)
    critical = float(special.stdtrit(degrees, 1 - alpha / max(1, tests)))
    noncentrality = float(special.nctdtrinc(degrees, 1 - POWER, critical))
    return math.expm1(margin + noncentrality * deviation * math.sqrt(1 / base_count + 1 / new_count))
