"""The statistics of a comparison, against scipy and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from infsa_bench.analyze.decisions import (
    MOST_DEGREES,
    Prior,
    Spread,
    benjamini_hochberg,
    change,
    confirmed,
    detectable,
    fit_prior,
    holm,
    inverse_trigamma,
    moderated,
    moments,
    pooled,
    screened,
)

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


def test_ragged_and_rectangular_values_have_the_same_moments() -> None:
    values = np.array([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0]])
    array, ragged = moments(values), moments(values.tolist())
    for field in ("mean", "variance", "count"):
        np.testing.assert_allclose(getattr(array, field), getattr(ragged, field))
    assert moments([[5.0]]).variance.tolist() == [0.0]


def test_the_test_without_a_margin_is_students() -> None:
    generator = np.random.default_rng(0)
    base, new = generator.normal(0, 1, (20, 5)), generator.normal(0.5, 1, (20, 7))
    result = change(moments(base), moments(new), pooled(moments(base), moments(new)), 0.0)
    expected = stats.ttest_ind(new, base, axis=1, alternative="greater")
    np.testing.assert_allclose(result.p_worse, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(result.p_worse + result.p_better, 1)
    interval = stats.ttest_ind(new, base, axis=1).confidence_interval()
    np.testing.assert_allclose(result.low, interval.low)
    np.testing.assert_allclose(result.high, interval.high)


def test_the_margin_shifts_the_null_hypothesis() -> None:
    base, new = np.array([[0.0, 0.1, -0.1, 0.0]]), np.array([[1.0, 1.1, 0.9, 1.0]])
    at_margin = change(moments(base), moments(new), pooled(moments(base), moments(new)), 1.0)
    np.testing.assert_allclose(at_margin.p_worse, 0.5)


def test_false_alarms_of_the_screen_stay_below_alpha_at_the_margin() -> None:
    """Cells that are worse by exactly the margin are suspected in one of twenty cases, unchanged ones far less."""
    generator = np.random.default_rng(1)
    base, new = generator.normal(0, 0.02, (20_000, 5)), generator.normal(0, 0.02, (20_000, 5))
    at_margin = screened(moments(base), moments(new + 0.03), 0.03).mean()
    assert 0.045 < at_margin < 0.055
    assert screened(moments(base), moments(new), 0.03).mean() < 0.005


def test_confirmation_is_of_all_suspects_together() -> None:
    generator = np.random.default_rng(2)
    alarms = 0
    for _ in range(2000):
        base, new = generator.normal(0, 0.02, (3, 10)), generator.normal(0.03, 0.02, (3, 10))
        alarms += bool(confirmed(moments(base), moments(new), 0.03).any())
    assert alarms / 2000 < 0.06


@given(P_VALUES)
def test_adjusted_p_values_keep_their_order_and_only_grow(p_values: np.ndarray) -> None:
    for adjusted in (holm(p_values), benjamini_hochberg(p_values)):
        assert (adjusted >= p_values * (1 - 1e-12)).all()
        assert (adjusted <= 1).all()
        order = np.argsort(p_values, kind="stable")
        assert (np.diff(adjusted[order]) >= 0).all()


@given(P_VALUES)
def test_benjamini_hochberg_is_scipys(p_values: np.ndarray) -> None:
    np.testing.assert_allclose(benjamini_hochberg(p_values), stats.false_discovery_control(p_values))


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])


@pytest.mark.parametrize("value", [1e-6, 0.01, 0.5, 1.0, 5.0, 1e4])
def test_inverse_trigamma(value: float) -> None:
    assert float(special.polygamma(1, inverse_trigamma(value))) == pytest.approx(value, rel=1e-6)


def test_the_prior_is_found_again() -> None:
    generator = np.random.default_rng(3)
    true = Prior(degrees=8.0, variance=4e-4)
    variances = true.variance * true.degrees / generator.chisquare(true.degrees, 20_000)
    sampled = variances * generator.chisquare(8, 20_000) / 8
    found = fit_prior(Spread(variance=sampled, degrees=np.full(20_000, 8.0)))
    assert found is not None
    assert found.degrees == pytest.approx(8.0, rel=0.1)
    assert found.variance == pytest.approx(4e-4, rel=0.05)


def test_cells_of_one_variance_have_a_prior_without_end() -> None:
    generator = np.random.default_rng(4)
    # Less scatter than sampling makes.
    sampled = 1e-4 * (1 + 0.01 * generator.normal(size=100))
    found = fit_prior(Spread(variance=sampled, degrees=np.full(100, 8.0)))
    assert found is not None
    assert found.degrees == MOST_DEGREES


def test_few_cells_have_no_prior() -> None:
    spread = Spread(variance=np.full(4, 1e-4), degrees=np.full(4, 8.0))
    assert fit_prior(spread) is None
    assert moderated(spread, None) is spread


def test_moderation_draws_towards_the_prior() -> None:
    spread = Spread(variance=np.array([1e-6, 1e-2]), degrees=np.array([8.0, 8.0]))
    drawn = moderated(spread, Prior(degrees=8.0, variance=1e-4))
    np.testing.assert_allclose(drawn.variance, [(1e-6 + 1e-4) / 2, (1e-2 + 1e-4) / 2])
    np.testing.assert_allclose(drawn.degrees, 16)


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(5)
    effect = math.log1p(detectable(0.02, 18, 10, 10, 0.03, tests=3))
    found = 0
    for _ in range(2000):
        base, new = generator.normal(0, 0.02, (3, 10)), generator.normal(0, 0.02, (3, 10))
        new[0] += effect
        found += bool(confirmed(moments(base), moments(new), 0.03)[0])
    assert 0.75 < found / 2000 < 0.86


@pytest.mark.parametrize(("count", "tests"), [(5, 1), (3, 1), (5, 300), (10, 3)])
def test_the_detectable_effect_is_that_of_the_noncentral_t(count: int, tests: int) -> None:
    """By the noncentral t distribution of scipy, for the statistic of two sides of ``count`` values."""
    deviation, margin = 0.02, math.log1p(0.03)
    effect = math.log1p(detectable(deviation, 2 * count - 2, count, count, margin, tests=tests))
    noncentrality = (effect - margin) / (deviation * math.sqrt(2 / count))
    critical = stats.t.ppf(1 - 0.05 / tests, 2 * count - 2)
    assert stats.nct.sf(critical, 2 * count - 2, noncentrality) == pytest.approx(0.8, abs=1e-4)
