from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from sample_records import make_failure, make_measurement, make_record

from infsa_bench.analyze.scaling import Exponent, Scaling, claimed_exponent, fit_exponent, scaling
from infsa_bench.analyze.summary import summarize
from infsa_bench.record import Record
from infsa_bench.spec import LADDER
from infsa_models.registry import MECHANISMS


def series(seconds: Callable[[int], float], sides: Sequence[int] = LADDER, **changes: object) -> list[Record]:
    """One measured record a side, its latency from its tokens."""
    cases = [make_record(resolution=side, **changes) for side in sides]
    return [
        make_record(make_measurement([seconds(record.case.tokens)]), resolution=record.case.resolution, **changes)
        for record in cases
    ]


def the_scaling(records: Sequence[Record]) -> Scaling:
    (found,) = scaling(summarize(records))
    return found


def the_latency(records: Sequence[Record]) -> Exponent:
    latency = the_scaling(records).latency
    assert latency is not None
    return latency


@pytest.mark.parametrize("exponent", [0.5, 1, 2])
def test_a_power_law_is_found_exactly(exponent: float) -> None:
    tokens = [100, 200, 1000]
    found = fit_exponent(tokens, [3 * count**exponent for count in tokens])
    assert found.value == pytest.approx(exponent)
    assert found.low == pytest.approx(exponent)
    assert found.high == pytest.approx(exponent)
    assert (found.points, found.tokens_low, found.tokens_high) == (3, 100, 1000)


def test_the_interval_is_that_of_a_regression() -> None:
    """Against slope and standard error by hand: x = 0, 1, 2, y = 0, 1.1, 1.9; t of one degree of freedom."""
    found = fit_exponent([1, math.e, math.e**2], [1, math.exp(1.1), math.exp(1.9)])
    residuals = [0.0 - 0.05, 1.1 - 1.0, 1.9 - 1.95]
    standard_error = math.sqrt(sum(each**2 for each in residuals) / 1 / 2)
    assert found.value == pytest.approx(0.95)
    assert found.high - found.value == pytest.approx(12.7062 * standard_error, rel=1e-4)
    assert found.value - found.low == pytest.approx(found.high - found.value)


@pytest.mark.parametrize(("tokens", "values"), [([1, 2], [1, 2]), ([4, 4, 4], [1, 2, 3]), ([], [])])
def test_too_little_has_no_exponent(tokens: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="an exponent needs 3 points"):
        fit_exponent(tokens, values)


@pytest.mark.parametrize("exponent", [1, 2])
def test_intervals_hold_the_exponent_at_the_stated_rate(exponent: int) -> None:
    """Of 4000 series with scatter of 5 %, 95 % hold it; 3.3 standard errors of that share are 1.1 %."""
    chance = random.Random(exponent)
    held = 0
    for _ in range(4000):
        tokens = [(side // 16) ** 2 + 1 for side in LADDER[-5:]]
        found = fit_exponent(tokens, [count**exponent * math.exp(chance.gauss(0, 0.05)) for count in tokens])
        held += found.low <= exponent <= found.high
    assert held / 4000 == pytest.approx(0.95, abs=0.0115)


def test_only_the_asymptotic_part_counts() -> None:
    """A tenth of a second that every call costs hides the growth of small sizes, which are left out."""
    found = the_latency(series(lambda tokens: 0.1 + 1e-3 * tokens))
    assert (found.points, found.tokens_low, found.tokens_high) == (5, 192**2 + 1, 576**2 + 1)
    assert found.value == pytest.approx(1, abs=0.002)


def test_of_a_series_with_wide_steps_the_last_three_count() -> None:
    found = the_latency(series(lambda tokens: 1e-3 * tokens, sides=(224, 384, 512, 1024, 9216)))
    assert (found.points, found.tokens_low, found.tokens_high) == (3, 32**2 + 1, 576**2 + 1)
    assert the_scaling(series(float, sides=(224, 9216))).latency is None


def test_launch_bound_points_do_not_count() -> None:
    records = series(lambda tokens: 1e-3 * tokens, sides=(512, 768, 1024, 1536))
    bound = make_record(make_measurement([9.0], launch_bound=True), resolution=448)
    found = the_latency([bound, *records])
    assert (found.points, found.value) == (4, pytest.approx(1))
    assert the_scaling([bound, *records[:2]]).latency is None


def test_failed_cells_do_not_count() -> None:
    records = series(lambda tokens: 1e-6 * tokens**2, sides=(512, 768, 1024))
    found = the_scaling([*records, make_record(make_failure(), resolution=2048)])
    assert found.latency is not None
    assert found.latency.tokens_high == 64**2 + 1


def test_memory_is_that_beside_the_model() -> None:
    records = [
        make_record(
            make_measurement(model_bytes=10**9, peak_memory_bytes=10**9 + 100 * record.case.tokens),
            resolution=record.case.resolution,
        )
        for record in series(float)
    ]
    memory = the_scaling(records).memory
    assert memory is not None
    assert memory.value == pytest.approx(1)
    within = [make_record(make_measurement(model_bytes=10, peak_memory_bytes=10), resolution=side) for side in LADDER]
    assert the_scaling(within).memory is None


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_complexities_claim(mechanism: str) -> None:
    assert claimed_exponent(mechanism) == (2 if mechanism in ("softmax", "infsa-pure") else 1)


@pytest.mark.parametrize("mechanism", ["some.package:Mixer", "gone"])
def test_what_states_no_complexity_claims_nothing(mechanism: str) -> None:
    assert claimed_exponent(mechanism) is None
    found = the_scaling(series(float, mechanism=mechanism))
    assert (found.claimed, found.flops, found.verdict) == (None, None, "no claim")


def test_large_images_show_what_is_claimed() -> None:
    quadratic = the_scaling(series(lambda tokens: 1e-9 * tokens**2))
    assert (quadratic.claimed, quadratic.verdict) == (2, "as claimed")
    assert quadratic.flops == pytest.approx(1.9, abs=0.1)
    linear = the_scaling(series(lambda tokens: 1e-9 * tokens, mechanism="infsa-linear"))
    assert (linear.claimed, linear.verdict) == (1, "as claimed")
    assert linear.flops == pytest.approx(1, abs=0.001)


def test_what_grows_otherwise_differs() -> None:
    assert the_scaling(series(lambda tokens: 1e-9 * tokens**1.5)).verdict == "differs"
    assert the_scaling(series(lambda tokens: 1e-9 * tokens**2, mechanism="infsa-linear")).verdict == "differs"


def test_small_images_show_too_little() -> None:
    """At 1024 x 1024 most of softmax's FLOPs are still the projections'."""
    small = the_scaling(series(lambda tokens: 1e-9 * tokens**2, sides=LADDER[:5]))
    assert small.verdict == "range too short"
    assert small.flops is not None
    assert small.flops < 1.5


def test_a_series_that_ends_early_shows_fixed_costs_only() -> None:
    """However sure its exponent is: it may not even be called different."""
    early = the_scaling(series(lambda tokens: tokens**0.7, sides=LADDER[:4], mechanism="infsa-linear"))
    assert (early.latency is not None, early.verdict) == (True, "range too short")
    assert the_scaling(series(lambda tokens: tokens**0.7, LADDER[:5], mechanism="infsa-linear")).verdict == "differs"


def test_scatter_that_hides_the_exponent_shows_too_little() -> None:
    chance = random.Random(1)
    wild = the_scaling(series(lambda tokens: tokens * math.exp(chance.gauss(0, 2)), mechanism="infsa-linear"))
    assert wild.latency is not None
    assert wild.latency.low < 1 < 2 < wild.latency.high
    assert wild.verdict == "range too short"


def test_series_are_kept_apart() -> None:
    records = [*series(float), *series(float, config="24L-16H"), *series(float, implementation="fast")]
    records += [*series(float, sides=LADDER[:1], phase="train"), *series(float, options=(("rho", "0.5"),))]
    found = scaling(summarize(records))
    assert sorted((each.case.config, each.case.implementation, each.case.options) for each in found) == [
        ("24L-16H", "reference", ()),
        ("4L-64H", "fast", ()),
        ("4L-64H", "reference", ()),
        ("4L-64H", "reference", (("rho", "0.5"),)),
    ]
    assert all(each.case.resolution == 224 for each in found)
    assert scaling([]) == []


def test_a_size_that_no_model_has_has_no_formula() -> None:
    """A record from elsewhere, of an image without a patch: one token."""
    found = the_scaling(series(float, sides=(8, 32, 64)))
    assert found.latency is not None
    assert (found.flops, found.verdict) == (None, "range too short")
