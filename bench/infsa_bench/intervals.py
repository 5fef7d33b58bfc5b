"""What samples say about their median or mean, and how sure that is. Pure functions; imports no torch.

Times within one process follow each other (clocks, temperature), so that n of them know less than n independent ones
would. Medians of blocks longer than that memory are nearly independent again.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Not scipy.stats: it takes a second to import, in every worker.
from scipy import special

CONFIDENCE = 0.95
CORRELATED = 0.2
"""Lag-1 autocorrelation above which single samples no longer count as independent."""

Samples = Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MedianInterval:
    """A 95 % interval of a median. ``block_length`` above 1: from medians of blocks of so many consecutive samples."""

    low: float
    high: float
    block_length: int


def lag1_autocorrelation(samples: Samples) -> float:
    """Return the correlation of each sample with the one before; 0 for fewer than 3 samples or equal ones."""
    if len(samples) < 3:
        return 0.0
    values = np.asarray(samples)
    deviations = values - values.mean()
    # Scaled first: squares of times in seconds could underflow.
    scale = np.abs(deviations).max()
    if scale <= 1e-12 * np.abs(values).max():
        return 0.0
    deviations = deviations / scale
    return float(deviations[1:] @ deviations[:-1] / (deviations @ deviations))


def effective_samples(samples: Samples) -> float:
    """Return how many independent samples would know as much: n (1 - r) / (1 + r) of lag-1 autocorrelation r >= 0."""
    correlation = max(0.0, lag1_autocorrelation(samples))
    return len(samples) * (1 - correlation) / (1 + correlation)


def block_length(correlation: float) -> int:
    """Return how many consecutive samples make one block: 1 unless they are correlated."""
    if correlation <= CORRELATED:
        return 1
    return 5 * math.ceil((1 + correlation) / (1 - correlation)) if correlation < 1 else 10**9


def median_interval(samples: Samples) -> MedianInterval | None:
    """Return the order-statistic 95 % interval of the median, from block medians where samples are correlated.

    None where there are too few: below 6 samples, or 6 blocks. An incomplete last block is left out.
    """
    length = block_length(lag1_autocorrelation(samples))
    count = len(samples) // length
    rank = order_statistic_rank(count)
    if rank < 1:
        return None
    values = np.asarray(samples, dtype=float)
    if length > 1:
        values = np.median(values[: count * length].reshape(count, length), axis=1)
    ordered = np.partition(values, (rank - 1, count - rank))
    return MedianInterval(low=float(ordered[rank - 1]), high=float(ordered[count - rank]), block_length=length)


def order_statistic_rank(count: int) -> int:
    """Return the largest rank l with ``1 - 2 P(X <= l - 1) >= 0.95``, X binomial(count, 1/2); 0 if there is none.

    The interval from the l-th smallest to the l-th largest of ``count`` independent samples then covers the median
    with that probability, whatever their distribution.
    """

    def is_too_high(rank: int) -> bool:
        return bool(1 - 2 * special.bdtr(rank - 1.0, count, 0.5) < CONFIDENCE)

    # Bisection, not a table of all ranks: timing asks while it runs, with up to a million samples.
    return bisect.bisect_left(range(1, count // 2 + 1), True, key=is_too_high)


def is_precise(samples: Samples, relative_half_width: float) -> bool:
    """Tell whether the interval of the median is no wider than that to each side, on average."""
    interval = median_interval(samples)
    if interval is None:
        return False
    return (interval.high - interval.low) / 2 <= relative_half_width * float(np.median(samples))


def mean_half_width(values: Samples) -> float | None:
    """Return half of Student's 95 % interval of the mean; None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    quantile = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(count)
