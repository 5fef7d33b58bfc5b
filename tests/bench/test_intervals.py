from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special

from infsa_bench.intervals import (
    CORRELATED,
    block_length,
    effective_samples,
    is_precise,
    lag1_autocorrelation,
    mean_half_width,
    median_interval,
    order_statistic_rank,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]

times = st.floats(1e-7, 1e3, allow_subnormal=False)
series = st.lists(times, min_size=1, max_size=120)


def exponential(chance: np.random.Generator, count: int) -> np.ndarray:
    return chance.exponential(1 / math.log(2), count)


def lognormal(chance: np.random.Generator, count: int) -> np.ndarray:
    return np.exp(0.5 * chance.standard_normal(count))


def autoregressive(correlation: float) -> Draw:
    def draw(chance: np.random.Generator, count: int) -> np.ndarray:
        """Times about 1 that remember the one before."""
        shocks = math.sqrt(1 - correlation**2) * chance.standard_normal(count)
        values = [chance.standard_normal()]
        for shock in shocks[1:]:
            values.append(correlation * values[-1] + shock)
        return np.exp(0.02 * np.asarray(values))

    return draw


# Ranks of the smaller end


@pytest.mark.parametrize(
    ("count", "rank"),
    [(0, 0), (1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (30, 10), (50, 18), (100, 40), (1000, 469)],
)
def test_ranks(count: int, rank: int) -> None:
    assert order_statistic_rank(count) == rank


@given(st.integers(0, 400))
def test_the_rank_is_the_largest_that_covers(count: int) -> None:
    """Against the binomial probabilities themselves, exactly."""
    rank = order_statistic_rank(count)

    def misses(of_rank: int) -> float:
        return 2 * sum(math.comb(count, below) for below in range(of_rank)) / 2**count

    assert misses(rank) <= 0.05 * (1 + 1e-12)
    assert misses(rank + 1) > 0.05 or rank == count // 2
    assert order_statistic_rank(count + 1) >= rank


def test_a_million_samples_have_a_rank_in_no_time() -> None:
    begin = time.perf_counter()
    rank = order_statistic_rank(10**6)
    assert time.perf_counter() - begin < 0.01
    assert rank == pytest.approx(10**6 / 2 - 1.96 * math.sqrt(10**6) / 2, abs=2)


# Correlation and blocks


def test_correlation_of_small_series() -> None:
    assert lag1_autocorrelation([]) == 0
    assert lag1_autocorrelation([3.0, 1.0]) == 0
    assert lag1_autocorrelation([2.0] * 50) == 0
    # Deviations -1, 0, 1: products 0 + 0 over 2.
    assert lag1_autocorrelation([1.0, 2.0, 3.0]) == pytest.approx(0.0)
    # Deviations -1.5, -0.5, 0.5, 1.5: (0.75 - 0.25 + 0.75) over 5.
    assert lag1_autocorrelation([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.25)
    assert lag1_autocorrelation([1.0, 2.0] * 4) == pytest.approx(-7 / 8)


def test_rounding_is_no_correlation() -> None:
    assert lag1_autocorrelation([0.1 + 0.2, 0.3, 0.3, 0.3]) == 0


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.9])
def test_the_correlation_of_a_long_series_is_found(correlation: float) -> None:
    samples = autoregressive(correlation)(np.random.default_rng(1), 20_000)
    assert lag1_autocorrelation(samples) == pytest.approx(correlation, abs=0.03)
    assert effective_samples(samples) == pytest.approx(
        len(samples) * (1 - correlation) / (1 + correlation), rel=0.1, abs=50
    )


@given(series, st.integers(-20, 20))
def test_correlation_has_no_unit(samples: list[float], exponent: int) -> None:
    found = lag1_autocorrelation(samples)
    assert -1 <= found < 1
    assert lag1_autocorrelation([value * 2.0**exponent for value in samples]) == pytest.approx(found, abs=1e-9)
    assert 0 < effective_samples(samples) <= len(samples)


@pytest.mark.parametrize(
    ("correlation", "length"),
    [(-0.9, 1), (0.0, 1), (CORRELATED, 1), (0.21, 10), (1 / 3, 10), (0.4, 15), (0.6, 20), (0.9, 95), (1.0, 10**9)],
)
def test_block_lengths(correlation: float, length: int) -> None:
    # 0.6 and 0.9 are not exact in binary: one block more or less is the same.
    assert block_length(correlation) == pytest.approx(length, abs=5 if correlation in (1 / 3, 0.6, 0.9) else 0)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_blocks_grow_with_the_correlation(one: float, other: float) -> None:
    assert block_length(min(one, other)) <= block_length(max(one, other))


# Intervals


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (30, (10, 21)), (50, (18, 33)), (100, (40, 61))],
)
def test_the_interval_lies_between_two_samples(count: int, ranks: tuple[int, int]) -> None:
    # 1, n, 2, n - 1, ...: no positive correlation.
    ordered = [float(value) for value in range(1, count + 1)]
    alternating = [value for pair in zip(ordered, reversed(ordered), strict=True) for value in pair][:count]
    interval = median_interval(alternating)
    assert interval is not None
    assert (interval.low, interval.high, interval.block_length) == (*ranks, 1)


def test_few_samples_have_no_interval() -> None:
    assert median_interval([]) is None
    assert median_interval([1.0, 2.0, 1.0, 2.0, 1.0]) is None
    assert not is_precise([1.0] * 5, 1.0)
    assert is_precise([1.0] * 6, 0.0)


@given(series)
def test_the_interval_holds_the_median_of_independent_samples(samples: list[float]) -> None:
    interval = median_interval(samples)
    assume(interval is not None and interval.block_length == 1)
    assert interval is not None
    assert min(samples) <= interval.low <= statistics.median(samples) <= interval.high <= max(samples)
    assert {interval.low, interval.high} <= {*samples}


@given(series, st.integers(-20, 20))
def test_the_interval_scales_with_its_unit(samples: list[float], exponent: int) -> None:
    factor = 2.0**exponent
    interval = median_interval(samples)
    scaled = median_interval([value * factor for value in samples])
    if interval is None or scaled is None:
        assert interval == scaled
        return
    assert (scaled.low, scaled.high) == pytest.approx((interval.low * factor, interval.high * factor), rel=1e-12)
    assert scaled.block_length == interval.block_length


@given(st.lists(times, min_size=6, max_size=60), st.floats(1e-4, 1.0))
def test_precision_is_the_half_width_over_the_median(samples: list[float], target: float) -> None:
    interval = median_interval(samples)
    if interval is None:
        assert not is_precise(samples, target)
        return
    half_width = (interval.high - interval.low) / 2 / statistics.median(samples)
    assume(abs(half_width - target) > 1e-9)
    assert is_precise(samples, target) == (half_width <= target)


def test_correlated_samples_are_taken_in_blocks() -> None:
    noisy = autoregressive(0.6)(np.random.default_rng(3), 1009)
    interval = median_interval(noisy)
    assert interval is not None
    length = interval.block_length
    assert length == block_length(lag1_autocorrelation(noisy)) > 1
    count = len(noisy) // length
    medians = sorted(statistics.median(noisy[index * length : (index + 1) * length]) for index in range(count))
    rank = order_statistic_rank(count)
    assert (interval.low, interval.high) == (medians[rank - 1], medians[count - rank])
    # The incomplete last block is left out.
    assert len(noisy) % length != 0


def test_a_drift_has_no_interval() -> None:
    """Every sample above the one before: nothing is known of where that would end."""
    assert median_interval([1 + index / 100 for index in range(60)]) is None


# Coverage


def coverage(draw: Draw, count: int, repetitions: int, seed: int) -> tuple[float, float]:
    """Return how often the interval, and one that takes the samples for independent, hold the true median, 1."""
    chance = np.random.default_rng(seed)
    found = covered = covered_naively = 0
    rank = order_statistic_rank(count)
    for _ in range(repetitions):
        samples = draw(chance, count)
        ordered = np.sort(samples)
        covered_naively += ordered[rank - 1] <= 1 <= ordered[count - rank]
        interval = median_interval(samples.tolist())
        if interval is not None:
            found += 1
            covered += interval.low <= 1 <= interval.high
    assert found >= 0.85 * repetitions
    return covered / found, covered_naively / repetitions


@pytest.mark.parametrize("count", [10, 30, 100, 300])
@pytest.mark.parametrize("draw", [exponential, lognormal])
def test_intervals_of_independent_samples_cover_the_median(draw: Draw, count: int) -> None:
    # 2000 repetitions: standard deviation 0.5 %, nominal 95 %.
    rate, _ = coverage(draw, count, 2000, seed=count)
    assert rate >= 0.93


@pytest.mark.parametrize("count", [300, 1000])
def test_intervals_of_correlated_samples_cover_the_median_by_blocks(count: int) -> None:
    rate, naive_rate = coverage(autoregressive(0.6), count, 600, seed=count)
    assert rate >= 0.93
    assert naive_rate <= 0.82


def test_intervals_of_weakly_correlated_samples_cover_the_median() -> None:
    rate, naive_rate = coverage(autoregressive(0.3), 300, 600, seed=7)
    assert rate >= 0.93
    assert naive_rate <= 0.93


@pytest.mark.soak
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.2, 0.3, 0.6, 0.8])
@pytest.mark.parametrize("count", [500, 3000])
def test_coverage_at_length(correlation: float, count: int) -> None:
    rate, _ = coverage(autoregressive(correlation), count, 4000, seed=count)
    assert rate >= 0.92 if 0 < correlation < 0.3 else rate >= 0.94


def test_looking_at_the_precision_of_many_samples_is_cheap() -> None:
    samples = np.random.default_rng(5).exponential(1e-5, 200_000).tolist()
    begin = time.perf_counter()
    is_precise(samples, 0.01)
    assert time.perf_counter() - begin < 0.5


# Means


def test_half_width_of_the_mean() -> None:
    assert mean_half_width([]) is None
    assert mean_half_width([1.0]) is None
    assert mean_half_width([2.0, 2.0, 2.0]) == 0
    # Student's quantiles 12.706 (1 degree of freedom), 4.303 (2), 2.776 (4).
    assert mean_half_width([1.0, 3.0]) == pytest.approx(12.706, rel=1e-4)
    assert mean_half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    spread = statistics.stdev([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean_half_width([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776 * spread / math.sqrt(5), rel=1e-3)


@settings(deadline=None)
@given(st.lists(times, min_size=2, max_size=20), st.integers(-20, 20))
def test_the_half_width_of_the_mean_scales_with_its_unit(values: list[float], exponent: int) -> None:
    half_width = mean_half_width(values)
    scaled = mean_half_width([value * 2.0**exponent for value in values])
    assert half_width is not None
    assert scaled == pytest.approx(half_width * 2.0**exponent, rel=1e-9)
    assert float(special.stdtrit(len(values) - 1, 0.975)) > 1.95
