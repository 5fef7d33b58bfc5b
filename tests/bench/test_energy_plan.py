"""How trials are cut into windows: properties, and the lengths that matter against a brute search."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infsa_bench.energy_plan import (
    AVERAGED_RISE_SECONDS,
    CONTINUOUS_BELOW_SECONDS,
    ENERGY_PRESETS,
    RISE_SECONDS,
    SLOW_SECONDS,
    SLOW_WINDOWS,
    VERY_SLOW_SECONDS,
    WHOLE_ENOUGH,
    EnergyPreset,
    TrialShare,
    WindowPlan,
    discarded_seconds,
    energy_seconds,
    number_of_trials,
    plan_trial,
    trials_of_replicate,
    whole_iteration_ticks,
)

QUICK, FULL = ENERGY_PRESETS["quick"], ENERGY_PRESETS["full"]
ITERATIONS = (0.010, 0.020, 0.0334, 0.050, 0.100, 0.130, 0.400, 1.700)
PERIODS = (0.1, 0.02)

presets = st.sampled_from([QUICK, FULL])
iteration_lengths = st.floats(1e-5, 60.0)
periods = st.floats(0.01, 1.0)


def left_over(ticks: int, iteration_seconds: float, period_seconds: float) -> float:
    """Part of a window that belongs to no whole iteration."""
    iterations = ticks * period_seconds / iteration_seconds
    return abs(iterations - max(1, round(iterations))) / iterations


def plans_of(preset: EnergyPreset, iteration_seconds: float, period_seconds: float) -> list[tuple[WindowPlan, ...]]:
    trials = number_of_trials(preset, preset.trials, iteration_seconds)
    return [
        plan_trial(
            preset,
            iteration_seconds=iteration_seconds,
            period_seconds=period_seconds,
            trial=trial,
            total=trials,
        )
        for trial in range(trials)
    ]


@given(preset=presets, iteration_seconds=iteration_lengths, period_seconds=periods)
@example(preset=QUICK, iteration_seconds=7.3, period_seconds=0.001)
@example(preset=FULL, iteration_seconds=0.0123, period_seconds=0.001)
@settings(deadline=None)
def test_offsets_are_spread_evenly_over_what_they_shift(
    preset: EnergyPreset, iteration_seconds: float, period_seconds: float
) -> None:
    stride = min(iteration_seconds, period_seconds)
    trials = plans_of(preset, iteration_seconds, period_seconds)
    # The phases of a trial of one window come from the trials, those of others from the windows.
    groups = [[plan for (plan,) in trials]] if len(trials[0]) == 1 else trials
    for group in groups:
        offsets = [plan.offset_seconds for plan in group]
        assert all(0 <= offset < stride for offset in offsets)
        assert offsets == pytest.approx([stride * index / len(offsets) for index in range(len(offsets))])


@given(preset=presets, iteration_seconds=iteration_lengths, period_seconds=periods)
@example(preset=QUICK, iteration_seconds=7.3, period_seconds=0.001)
@example(preset=FULL, iteration_seconds=0.0123, period_seconds=0.001)
@settings(deadline=None)
def test_windows_are_as_long_as_asked_and_hold_an_iteration(
    preset: EnergyPreset, iteration_seconds: float, period_seconds: float
) -> None:
    for plans in plans_of(preset, iteration_seconds, period_seconds):
        assert len({plan.ticks for plan in plans}) == 1
        seconds = plans[0].ticks * period_seconds
        assert seconds > min(0.99 * iteration_seconds, iteration_seconds - period_seconds)
        assert len(plans) * seconds >= preset.window_seconds - len(plans) * period_seconds
        longest = 3 * (max(preset.window_seconds, SLOW_WINDOWS, len(plans) * iteration_seconds) + period_seconds)
        assert len(plans) * seconds <= longest + 2 * len(plans) * period_seconds


@given(
    least=st.integers(1, 60),
    iterations_per_window=st.floats(0.02, 200),
    period_seconds=st.floats(0.005, 1.0),
)
def test_ticks_are_the_first_that_are_whole_enough(
    least: int, iterations_per_window: float, period_seconds: float
) -> None:
    iteration_seconds = least * period_seconds / iterations_per_window
    ticks = whole_iteration_ticks(least, iteration_seconds=iteration_seconds, period_seconds=period_seconds)
    assert least <= ticks <= 3 * least
    rest = {count: left_over(count, iteration_seconds, period_seconds) for count in range(least, 3 * least + 1)}
    assert rest[ticks] <= min(rest.values()) + WHOLE_ENOUGH + 1e-9
    assert all(rest[count] > min(rest.values()) + WHOLE_ENOUGH - 1e-9 for count in range(least, ticks))


@pytest.mark.parametrize("period_seconds", PERIODS)
@pytest.mark.parametrize("preset", [QUICK, FULL], ids=lambda preset: preset.name)
@pytest.mark.parametrize("iteration_seconds", ITERATIONS)
def test_windows_are_whole_iterations(iteration_seconds: float, preset: EnergyPreset, period_seconds: float) -> None:
    """Of the lengths that beat with the sensor, a window keeps less than half a percent that is not whole."""
    for plans in plans_of(preset, iteration_seconds, period_seconds):
        for plan in plans:
            assert left_over(plan.ticks, iteration_seconds, period_seconds) < 0.005


@pytest.mark.parametrize(
    ("iteration_seconds", "period_seconds", "least", "ticks"),
    [
        (0.100, 0.1, 6, 6),
        (0.050, 0.1, 6, 6),
        (0.130, 0.1, 2, 4),  # 3.08 iterations: of 2 to 6 ticks the nearest
        (0.130, 0.1, 6, 13),  # exactly 10
        (0.400, 0.1, 6, 8),
        (1.700, 0.1, 17, 17),
        (1.700, 0.1, 10, 17),
        (0.0334, 0.1, 2, 2),  # 5.99 iterations
        (0.400, 0.02, 20, 20),
        (10.0, 0.1, 1, 3),  # none fits: as much of it as allowed
    ],
)
def test_ticks_by_hand(iteration_seconds: float, period_seconds: float, least: int, ticks: int) -> None:
    found = whole_iteration_ticks(least, iteration_seconds=iteration_seconds, period_seconds=period_seconds)
    assert found == ticks


def test_short_iterations_are_watched_in_one_piece() -> None:
    for preset in (QUICK, FULL):
        trials = plans_of(preset, 0.003, 0.1)
        assert [len(plans) for plans in trials] == [1] * preset.trials
        assert {plans[0].ticks for plans in trials} == {round(preset.window_seconds / 0.1)}
    assert len(plans_of(QUICK, math.nextafter(CONTINUOUS_BELOW_SECONDS, 0), 0.1)[0]) == 1
    assert len(plans_of(QUICK, CONTINUOUS_BELOW_SECONDS, 0.1)[0]) == QUICK.segments


def test_quick_and_full_differ_for_slow_iterations() -> None:
    slow = math.nextafter(SLOW_SECONDS, 1)
    assert [len(plans) for plans in plans_of(QUICK, SLOW_SECONDS, 0.1)] == [8, 8, 8]
    assert [len(plans) for plans in plans_of(QUICK, slow, 0.1)] == [SLOW_WINDOWS] * 3
    assert [len(plans) for plans in plans_of(FULL, slow, 0.1)] == [8] * 5
    # Each of the few windows is at least a second and an iteration.
    assert {plan.ticks for plans in plans_of(QUICK, 0.25, 0.1) for plan in plans} == {10}
    assert {plan.ticks for plans in plans_of(QUICK, 1.7, 0.1) for plan in plans} == {17}


def test_very_slow_iterations_have_few_windows_and_few_trials() -> None:
    very_slow = math.nextafter(VERY_SLOW_SECONDS, 3)
    assert number_of_trials(QUICK, 3, VERY_SLOW_SECONDS) == 3
    assert number_of_trials(QUICK, 3, very_slow) == 1
    assert [number_of_trials(FULL, trials, 40.0) for trials in (1, 2, 5)] == [1, 2, 3]
    for preset, trials in ((QUICK, 1), (FULL, 3)):
        plans = plans_of(preset, 40.0, 0.1)
        assert [len(windows) for windows in plans] == [SLOW_WINDOWS] * trials
        assert {plan.ticks for windows in plans for plan in windows} == {400}
        # Each trial by itself looks at all phases of the sensor's period.
        assert [plan.offset_seconds for plan in plans[0]] == pytest.approx([0.0, 0.025, 0.05, 0.075])


@pytest.mark.parametrize(
    ("trials", "replicates", "shares"),
    [(3, 1, [3]), (5, 3, [2, 2, 1]), (5, 5, [1] * 5), (3, 5, [1] * 5), (7, 2, [4, 3])],
)
def test_trials_fall_to_replicates_in_turn(trials: int, replicates: int, shares: list[int]) -> None:
    preset = EnergyPreset(name="any", trials=trials, window_seconds=2.0, segments=8)
    found = [trials_of_replicate(preset, replicate, replicates) for replicate in range(replicates)]
    assert [share.count for share in found] == shares


@given(st.integers(1, 40), st.integers(1, 100))
def test_no_trial_is_lost_or_made_twice(trials: int, replicates: int) -> None:
    preset = EnergyPreset(name="any", trials=trials, window_seconds=2.0, segments=8)
    shares = [trials_of_replicate(preset, replicate, replicates) for replicate in range(replicates)]
    numbers = [number for share in shares for number in range(share.first, share.first + share.count)]
    assert numbers == list(range(max(trials, replicates)))
    assert {share.total for share in shares} == {len(numbers)}
    counts = [share.count for share in shares]
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("replicates", [1, 3, 5])
def test_replicates_share_the_phases_of_short_iterations(replicates: int) -> None:
    """However the trials are dealt out, together they have the phases that one process would have given them."""
    offsets = []
    for replicate in range(replicates):
        share = trials_of_replicate(FULL, replicate, replicates)
        for number in range(share.count):
            (plan,) = plan_trial(
                FULL, iteration_seconds=0.004, period_seconds=0.1, trial=share.first + number, total=share.total
            )
            offsets.append(plan.offset_seconds)
    assert offsets == pytest.approx([0.0, 0.0008, 0.0016, 0.0024, 0.0032])


def test_seconds_of_an_energy_measurement() -> None:
    """Settling with an update to wait for, then windows: two waits, what is discarded, ticks, the end."""
    one, three = TrialShare.all_of(1), TrialShare.all_of(3)
    settled = 1.0 + 0.1 + 0.001
    window = 0.2 + 0.2 + 2.0 + 0.001
    assert energy_seconds(QUICK, one, 0.001) == pytest.approx(settled + window)
    assert energy_seconds(QUICK, three, 0.001) == pytest.approx(settled + 3 * window)
    segments = 8 * (0.2 + 0.2 + 0.2 + 0.01)
    assert energy_seconds(QUICK, one, 0.01) == pytest.approx(1.0 + 0.1 + 0.01 + segments)
    slow = 4 * (0.2 + 0.2 + 1.5 + 1.5)
    assert energy_seconds(QUICK, three, 1.5) == pytest.approx(1.0 + 0.1 + 1.5 + 3 * slow)
    assert energy_seconds(QUICK, three, 100.0) == energy_seconds(QUICK, one, 100.0) > 400
    averaged = energy_seconds(QUICK, one, 0.01, rise_seconds=0.85)
    assert averaged - energy_seconds(QUICK, one, 0.01) == pytest.approx(8 * 0.9)
    assert energy_seconds(QUICK, one, 0.001, period_seconds=0.5) > energy_seconds(QUICK, one, 0.001) + 4


def test_a_slow_counter_still_gets_a_window() -> None:
    """Half a second between updates: a segment is at least one of them."""
    for iteration_seconds, preset in itertools.product((0.001, 0.02, 0.4), (QUICK, FULL)):
        for plans in plans_of(preset, iteration_seconds, 0.5):
            assert min(plan.ticks for plan in plans) >= 1
    assert plans_of(replace(QUICK, window_seconds=0.1), 0.001, 0.5)[0][0].ticks == 1


@pytest.mark.parametrize(
    ("period_seconds", "rise_seconds", "seconds"),
    [
        (0.1, None, 0.2),
        (0.1, 0.1, 0.2),
        (0.02, 0.1, RISE_SECONDS),
        (0.1, 0.5, 0.2),
        (0.1, 0.85, AVERAGED_RISE_SECONDS),
        (0.02, 0.85, AVERAGED_RISE_SECONDS),
        (1.0, 0.85, 2.0),
    ],
)
def test_what_is_discarded(period_seconds: float, rise_seconds: float | None, seconds: float) -> None:
    assert discarded_seconds(period_seconds, rise_seconds) == seconds
