"""What sampled power tells: integrals by hand, gaps, and the shapes of a rise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infsa_bench.energy_plan import SLOW_RISE_SECONDS
from infsa_bench.measure.energy.observer import Sample
from infsa_bench.measure.energy.trace import power_joules, rise_seconds

MS = 1_000_000


def samples_of(*points: tuple[float, float | None]) -> tuple[Sample, ...]:
    """Samples at so many milliseconds, of so many watts."""
    return tuple(
        Sample(
            ns=round(at_ms * MS),
            power_watts=watts,
            sm_clock_mhz=None,
            temperature_celsius=None,
            event_reasons=(),
            foreign_processes=None,
        )
        for at_ms, watts in points
    )


# Integrals.


def test_constant_power() -> None:
    samples = samples_of(*((at, 250.0) for at in range(0, 2001, 50)))
    assert power_joules(samples, 0, 2000 * MS) == pytest.approx(500.0)
    assert power_joules(samples, 333 * MS, 777 * MS) == pytest.approx(250 * 0.444)


def test_a_ramp_by_hand() -> None:
    """From 100 to 300 W in a second; the part from 0.25 to 0.75 s, which ends between samples."""
    samples = samples_of((0, 100.0), (400, 180.0), (600, 220.0), (1000, 300.0))
    assert power_joules(samples, 0, 1000 * MS) == pytest.approx(200.0)
    assert power_joules(samples, 250 * MS, 750 * MS) == pytest.approx(0.5 * (150 + 250) / 2)
    assert power_joules(samples, 450 * MS, 550 * MS) == pytest.approx(0.1 * 200)


def test_a_step_is_a_slope_between_its_samples() -> None:
    samples = samples_of((0, 0.0), (100, 0.0), (200, 100.0), (300, 100.0))
    assert power_joules(samples, 0, 300 * MS) == pytest.approx(15.0)


@given(
    watts=st.lists(st.floats(0, 1000), min_size=6, max_size=40),
    cut=st.floats(0.01, 0.99),
    start_ns=st.integers(0, 2**62),
)
def test_integrals_add_up(watts: list[float], cut: float, start_ns: int) -> None:
    """However long the machine has been up: nanoseconds since boot are beyond a float's exact integers."""
    samples = tuple(
        Sample(
            ns=start_ns + 50 * MS * index,
            power_watts=level,
            sm_clock_mhz=None,
            temperature_celsius=None,
            event_reasons=(),
            foreign_processes=None,
        )
        for index, level in enumerate(watts)
    )
    end_ns = samples[-1].ns
    middle_ns = start_ns + round(cut * (end_ns - start_ns))
    whole = power_joules(samples, start_ns, end_ns)
    first, second = power_joules(samples, start_ns, middle_ns), power_joules(samples, middle_ns, end_ns)
    assert whole is not None
    assert first is not None
    assert second is not None
    assert first + second == pytest.approx(whole, rel=1e-5, abs=1e-3)
    expected = sum((a + b) / 2 * 0.05 for a, b in pairwise(watts))
    assert whole == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_samples_that_do_not_reach_around_tell_nothing() -> None:
    samples = samples_of(*((at, 250.0) for at in range(100, 501, 50)))
    assert power_joules(samples, 100 * MS, 500 * MS) == pytest.approx(100.0)
    assert power_joules(samples, 99 * MS, 500 * MS) is None
    assert power_joules(samples, 100 * MS, 501 * MS) is None
    assert power_joules((), 0, 1) is None
    assert power_joules(samples[:1], 100 * MS, 100 * MS) is None


def test_samples_without_power_tell_nothing() -> None:
    assert power_joules(samples_of((0, None), (50, None), (100, None)), 10 * MS, 20 * MS) is None
    # The first and the last one that tell must reach around.
    assert power_joules(samples_of((0, None), (50, 1.0), (100, 1.0), (150, None)), 60 * MS, 140 * MS) is None


def test_a_gap_is_bridged_only_if_it_is_short() -> None:
    def with_gap(gap_ms: int) -> tuple[Sample, ...]:
        return samples_of(*((at, 100.0) for at in [*range(0, 1000, 20), *range(980 + gap_ms, 3000, 20)]))

    assert power_joules(with_gap(180), 500 * MS, 2500 * MS) == pytest.approx(200.0)
    assert power_joules(with_gap(220), 500 * MS, 2500 * MS) is None
    # Outside of what is integrated it does not matter, at its very edge it does.
    assert power_joules(with_gap(1000), 100 * MS, 900 * MS) == pytest.approx(80.0)
    assert power_joules(with_gap(1000), 100 * MS, 981 * MS) is None
    # Of a long stretch the same gap is a small part.
    long = samples_of(*((at, 100.0) for at in [*range(0, 5000, 20), *range(5400, 10001, 20)]))
    assert power_joules(long, 0, 10_000 * MS) == pytest.approx(1000.0)
    # Samples that tell nothing leave a gap, too.
    torn = samples_of(*((at, None if 1000 <= at < 1500 else 100.0) for at in range(0, 3000, 20)))
    assert power_joules(torn, 500 * MS, 2500 * MS) is None


# Rises.


def rising(levels: list[float], step_ms: float = 50) -> tuple[Sample, ...]:
    return samples_of(*((index * step_ms, watts) for index, watts in enumerate(levels)))


def test_an_instant_sensor_rises_at_once() -> None:
    assert rise_seconds(rising([60.0] * 3 + [400.0] * 57), 60.0) == 0.0
    # One reading in between.
    assert rise_seconds(rising([60.0] * 3 + [220.0] + [400.0] * 56), 60.0) == pytest.approx(0.05)


def test_an_average_over_a_second_rises_for_eight_tenths_of_it() -> None:
    levels = [60 + 340 * min(1.0, index / 20) for index in range(60)]
    found = rise_seconds(rising(levels), 60.0)
    assert found == pytest.approx(0.8, abs=0.051)
    assert found > SLOW_RISE_SECONDS


def test_an_exponential_rise() -> None:
    tau = 0.1
    levels = [60 + 340 * (1 - math.exp(-index * 0.01 / tau)) for index in range(300)]
    assert rise_seconds(rising(levels, step_ms=10), 60.0) == pytest.approx(tau * math.log(9), abs=0.02)


def test_a_single_spike_at_the_end_does_not_move_the_goal() -> None:
    levels = [60.0] * 3 + [400.0] * 56 + [4000.0]
    assert rise_seconds(rising(levels), 60.0) == 0.0


@pytest.mark.parametrize(
    ("levels", "idle_watts"),
    [
        ([60.0] * 30, 60.0),  # no load to speak of
        ([60.0] * 3 + [70.0] * 27, 60.0),
        ([60.0] * 3 + [400.0] * 27, None),  # idle power is not known
        ([400.0, 400.0], 60.0),  # too few samples
        ([], 60.0),
        ([400.0] * 5 + [60.0] * 25, 60.0),  # it falls
    ],
)
def test_no_rise_is_told_where_there_is_none_to_see(levels: list[float], idle_watts: float | None) -> None:
    assert rise_seconds(rising(levels), idle_watts) is None


def test_samples_without_power_have_no_rise() -> None:
    assert rise_seconds(samples_of((0, None), (50, None), (100, None), (150, None)), 60.0) is None
    assert rise_seconds(samples_of((0, 60.0), (50, None), (100, 400.0), (150, 400.0)), 60.0) == 0.0
