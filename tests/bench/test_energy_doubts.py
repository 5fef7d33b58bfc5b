from __future__ import annotations

import dataclasses

import pytest
from sample_records import make_trial, make_window

from infsa_bench.measure.energy.doubts import is_settled, trial_doubts
from infsa_bench.record import EnergyTrial


def trials(*temperatures: tuple[int, int]) -> list[EnergyTrial]:
    return [make_trial(temperature_begin_celsius=begin, temperature_end_celsius=end) for begin, end in temperatures]


@pytest.mark.parametrize(
    ("temperatures", "is_drifting"),
    [
        (((60, 60), (60, 61), (61, 60)), False),
        (((60, 62), (62, 64), (64, 65)), False),
        (((60, 62), (62, 64), (64, 66)), True),
        # Within the first trial alone.
        (((40, 70), (70, 70), (70, 70)), True),
        # Before those that were planned.
        (((40, 70), (70, 70), (70, 70), (70, 70)), False),
        (((40, 46),), True),
    ],
)
def test_a_board_that_warms_up_between_any_two_moments_is_doubted(
    temperatures: tuple[tuple[int, int], ...], is_drifting: bool
) -> None:
    done = trials(*temperatures)
    assert ("temperature_drift" in trial_doubts(done, 3, (), ())) == is_drifting
    if len(done) > 1:
        assert is_settled(done, 3) == (not is_drifting)


@pytest.mark.parametrize(("gap", "is_doubted"), [(0.09, False), (-0.09, False), (0.11, True), (-0.11, True)])
def test_a_counter_that_differs_from_power_by_a_tenth_is_doubted(gap: float, is_doubted: bool) -> None:
    window = make_window(600.0, power_joules=600.0 * (1 + gap))
    done = [dataclasses.replace(make_trial(window)) for _ in range(3)]
    assert ("counter_vs_power" in trial_doubts(done, 3, (), ())) == is_doubted
