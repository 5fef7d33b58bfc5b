from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import CALIBRATION, make_energy, make_no_energy, make_trial, make_window

from infsa_bench.analyze.energy import REL_CI_TARGET, SYSTEMATIC_RELATIVE, EnergySummary, pool_energy
from infsa_bench.record import EnergyReading, EnergyScope, EnergySource

T_975_WITH_2_DEGREES = 4.302652729911275
"""Quantile of Student's distribution, from a printed table."""


def test_a_reading_by_hand() -> None:
    """Windows of 200 iterations in 2 s, two images each: 600 J are 1.5 J an image, at 300 W and 200 images/s."""
    summary = pool_energy([make_energy([600.0, 604.0, 596.0])], batch_size=2)
    half_width = math.hypot(T_975_WITH_2_DEGREES * 0.01 / math.sqrt(3), 0.001 * 1.5)
    assert summary == EnergySummary(
        status="measured",
        reason=None,
        detail=None,
        source="nvml_counter",
        scope="gpu",
        preset="quick",
        trials=3,
        joules_per_image=pytest.approx(1.5, rel=1e-14),
        half_width_joules=pytest.approx(half_width, rel=1e-9),
        systematic_relative=SYSTEMATIC_RELATIVE,
        net_joules_per_image=pytest.approx(1.5 - 75.0 / 200),
        average_power_watts=300.0,
        idle_power_watts=75.0,
        window_images_per_second=200.0,
        power_capped_fraction=0.0,
        crosscheck_gap=None,
        change_per_trial=pytest.approx(-0.005 / 1.5),
        temperature_low_celsius=40,
        temperature_high_celsius=41,
    )
    assert summary.joules_per_image is not None
    assert summary.low_joules == pytest.approx(summary.joules_per_image - half_width)
    assert summary.high_joules == pytest.approx(summary.joules_per_image + half_width)


def test_the_bias_is_in_the_interval_and_the_gain_is_not() -> None:
    """Without scatter the half-width is the bias alone, the largest of the replicates'."""
    readings = [make_energy([600.0] * 3, relative_bias=bias) for bias in (0.001, 0.004, 0.002)]
    summary = pool_energy(readings, batch_size=1)
    assert (summary.joules_per_image, summary.trials) == (3.0, 9)
    assert summary.half_width_joules == pytest.approx(0.004 * 3.0)
    assert summary.systematic_relative == 0.05


@pytest.mark.parametrize(
    ("source", "scope", "systematic"),
    [("nvml_counter", "gpu", 0.05), ("nvml_power", "module", 0.05), ("rapl", "package+dram", None)],
)
def test_what_is_known_of_the_gain(source: EnergySource, scope: EnergyScope, systematic: float | None) -> None:
    calibration = dataclasses.replace(CALIBRATION, source=source, scope=scope)
    summary = pool_energy([make_energy(calibration=calibration)], batch_size=1)
    assert (summary.source, summary.scope, summary.systematic_relative) == (source, scope, systematic)


def test_every_trial_of_every_replicate_counts_the_same() -> None:
    pooled = pool_energy([make_energy([600.0, 601.0]), make_energy([605.0]), make_energy([602.0])], batch_size=1)
    alone = pool_energy([make_energy([600.0, 601.0, 605.0, 602.0])], batch_size=1)
    assert pooled.joules_per_image == alone.joules_per_image
    assert pooled.half_width_joules == alone.half_width_joules
    assert (pooled.status, pooled.trials) == ("measured", 4)


def test_single_trials_of_the_workers_make_an_interval_together() -> None:
    readings = [make_energy([joules], doubts=("single_trial",), detail="one trial") for joules in (600.0, 602.0, 598.0)]
    summary = pool_energy(readings, batch_size=1)
    assert (summary.status, summary.reason, summary.detail) == ("measured", None, None)
    assert summary.half_width_joules is not None
    assert summary.change_per_trial is None


def test_one_trial_has_no_interval() -> None:
    summary = pool_energy([make_energy([600.0], doubts=("single_trial",))], batch_size=1)
    assert (summary.status, summary.reason) == ("measured_low_confidence", "single_trial")
    assert summary.joules_per_image == 3.0
    assert (summary.half_width_joules, summary.low_joules, summary.high_joules) == (None, None, None)


def test_wide_trials_of_one_worker_may_be_narrow_in_the_pool() -> None:
    wide = make_energy([600.0, 610.0], doubts=("wide_interval",))
    assert pool_energy([wide], batch_size=1).reason == "wide_interval"
    narrow = [make_energy([604.0 + i, 606.0 - i]) for i in range(3)]
    assert pool_energy([wide, *narrow], batch_size=1).status == "measured"


def test_narrow_trials_of_every_worker_may_be_wide_in_the_pool() -> None:
    readings = [make_energy([joules, joules * 1.0001]) for joules in (600.0, 660.0, 630.0)]
    assert all(pool_energy([reading], batch_size=1).status == "measured" for reading in readings)
    summary = pool_energy(readings, batch_size=1)
    assert (summary.status, summary.reason) == ("measured_low_confidence", "wide_interval")
    assert summary.detail == "the mean's 95 % interval is wider than +-2 %"


def test_the_target_is_on_the_scatter_alone() -> None:
    """A half-width of just under and just over 2 % of the mean, with a bias that counts for neither."""
    for factor, status in ((0.999, "measured"), (1.001, "measured_low_confidence")):
        step = factor * REL_CI_TARGET * 600.0 * math.sqrt(3) / T_975_WITH_2_DEGREES
        reading = make_energy([600.0 - step, 600.0, 600.0 + step], relative_bias=0.015)
        assert pool_energy([reading], batch_size=1).status == status


@pytest.mark.parametrize(
    ("doubts", "reason"),
    [
        ([("shared",), ()], "shared"),
        ([(), ("drift",)], "drift"),
        ([("wide_interval", "shared"), ("drift",)], "shared"),
        ([("drift", "shared"), ("shared",)], "drift"),
    ],
    ids=str,
)
def test_the_first_doubt_that_remains_is_the_reason(doubts: list[tuple[str, ...]], reason: str) -> None:
    readings = [make_energy(doubts=each) if each else make_energy() for each in doubts]
    summary = pool_energy(readings, batch_size=1)
    assert (summary.status, summary.reason) == ("measured_low_confidence", reason)


def test_a_wide_interval_is_the_last_of_the_doubts() -> None:
    readings = [make_energy([600.0, 700.0], doubts=("wide_interval",)), make_energy(doubts=("shared",))]
    assert pool_energy(readings, batch_size=1).reason == "shared"
    assert pool_energy([*readings, make_no_energy()], batch_size=1).reason == "shared"
    assert pool_energy([readings[0], make_no_energy()], batch_size=1).reason == "partly_measured"


def test_the_detail_is_that_of_the_reason() -> None:
    readings = [
        make_energy(doubts=("single_trial", "drift"), detail="only one"),
        make_energy(doubts=("drift",), detail="6 degrees warmer"),
        make_energy(doubts=("drift",), detail="7 degrees warmer"),
    ]
    assert pool_energy(readings, batch_size=1).detail == "6 degrees warmer"
    assert pool_energy(readings[:1], batch_size=1).detail is None


def test_a_reason_that_is_not_among_the_doubts_counts_too() -> None:
    reading = make_energy(status="measured_low_confidence", reason="shared", detail="somebody else")
    summary = pool_energy([reading], batch_size=1)
    assert (summary.status, summary.reason, summary.detail) == ("measured_low_confidence", "shared", "somebody else")


def test_nothing_is_measured_where_no_replicate_measured() -> None:
    readings = [make_no_energy("mig", "shares its board"), make_no_energy("rapl_absent")]
    assert pool_energy(readings, batch_size=1) == EnergySummary(
        status="not_measured", reason="mig", detail="shares its board"
    )


def test_what_some_replicates_lack_is_said() -> None:
    readings = [make_no_energy("mig"), make_energy([600.0, 600.0]), make_no_energy("vgpu")]
    summary = pool_energy(readings, batch_size=1)
    assert (summary.status, summary.reason) == ("measured_low_confidence", "partly_measured")
    assert summary.detail == "not measured in 2 of 3 processes: mig"
    assert (summary.joules_per_image, summary.trials) == (3.0, 2)


def test_two_ways_of_measuring_are_not_one() -> None:
    sampled = dataclasses.replace(CALIBRATION, source="nvml_power")
    summary = pool_energy([make_energy(), make_energy(calibration=sampled)], batch_size=1)
    assert (summary.status, summary.reason) == ("measured_low_confidence", "mixed_sources")
    assert summary.detail == "replicates were watched by nvml_counter (gpu) and nvml_power (gpu)"


def test_windows_are_weighted_by_their_length() -> None:
    trials = (
        make_trial(make_window(100.0, seconds=1.0, iterations=10.0), make_window(900.0, seconds=3.0, iterations=30.0)),
        make_trial(make_window(500.0, seconds=2.0, iterations=20.0)),
    )
    summary = pool_energy([make_energy(trials=trials)], batch_size=4)
    assert summary.average_power_watts == 1500 / 6
    assert summary.window_images_per_second == 60 * 4 / 6
    assert summary.joules_per_image == 25.0 / 4
    assert summary.net_joules_per_image == 25.0 / 4 - 75.0 * 6 / 240


def test_idle_power_is_unknown_or_the_middle_of_what_is_known() -> None:
    def reading(idle_watts: float | None) -> EnergyReading:
        return make_energy([600.0, 600.0], calibration=dataclasses.replace(CALIBRATION, idle_watts=idle_watts))

    unknown = pool_energy([reading(None)], batch_size=1)
    assert (unknown.idle_power_watts, unknown.net_joules_per_image) == (None, None)
    known = pool_energy([reading(None), reading(70.0), reading(90.0), reading(71.0)], batch_size=1)
    assert known.idle_power_watts == 71.0
    assert known.net_joules_per_image == pytest.approx(3.0 - 0.71)
    assert known.status == "measured"


def test_the_cross_check_compares_what_was_sampled_alone() -> None:
    trials = (
        make_trial(make_window(600.0, power_joules=540.0), make_window(600.0, power_joules=None)),
        make_trial(make_window(400.0, power_joules=400.0)),
    )
    assert pool_energy([make_energy(trials=trials)], batch_size=1).crosscheck_gap == pytest.approx(940 / 1000 - 1)


def test_what_was_not_looked_at_is_unknown() -> None:
    nothing = {"temperature_begin_celsius": None, "temperature_end_celsius": None, "power_capped_fraction": None}
    summary = pool_energy([make_energy(trials=(make_trial(**nothing), make_trial(**nothing)))], batch_size=1)
    assert summary.power_capped_fraction is None
    assert (summary.temperature_low_celsius, summary.temperature_high_celsius) == (None, None)
    some = make_trial(temperature_begin_celsius=None, temperature_end_celsius=52, power_capped_fraction=0.5)
    summary = pool_energy([make_energy(trials=(make_trial(**nothing), some, make_trial()))], batch_size=1)
    assert summary.power_capped_fraction == 0.25
    assert (summary.temperature_low_celsius, summary.temperature_high_celsius) == (40, 52)


def test_the_change_per_trial_is_one_within_processes() -> None:
    """Both rise by 3 J a trial, in the order in which they began; one process is 100 J above the other."""
    slow = make_energy([600.0, 603.0, 606.0])
    shuffled = dataclasses.replace(slow, trials=tuple(slow.trials[i] for i in (2, 0, 1)))
    other = make_energy([700.0, 703.0])
    for readings, mean in (([slow], 603.0), ([shuffled], 603.0), ([slow, other], (3 * 603 + 2 * 701.5) / 5)):
        assert pool_energy(readings, batch_size=1).change_per_trial == pytest.approx(3.0 / mean)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(min_value=1e-3, max_value=1e6), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(min_value=1, max_value=512),
)
def test_no_number_without_a_source_and_no_doubt_without_a_word(joules: Sequence[Sequence[float]], batch: int) -> None:
    readings = [make_energy(each) for each in joules]
    summary = pool_energy(readings, batch)
    assert summary.joules_per_image is not None
    assert summary.source is not None
    assert (summary.status == "measured") == (summary.reason is None)
    values = [value / 200 / batch for each in joules for value in each]
    assert min(values) * (1 - 1e-12) <= summary.joules_per_image <= max(values) * (1 + 1e-12)
    assert (summary.half_width_joules is None) == (len(values) == 1)
    # Batch size scales joules and nothing else.
    once = pool_energy(readings, 1)
    assert once.joules_per_image == pytest.approx(summary.joules_per_image * batch)
    assert (once.status, once.reason, once.average_power_watts) == (
        summary.status,
        summary.reason,
        summary.average_power_watts,
    )


@pytest.mark.parametrize("replicates", [1, 3])
def test_coverage(replicates: int) -> None:
    """Trials of 0.5 % standard deviation, three in all: 95 of 100 intervals hold the truth."""
    chance = random.Random(replicates)
    runs, covered = 1500, 0
    for _ in range(runs):
        joules = [600.0 * (1 + chance.gauss(0, 0.005)) for _ in range(3)]
        groups = [joules] if replicates == 1 else [[value] for value in joules]
        summary = pool_energy([make_energy(group, relative_bias=0.0) for group in groups], batch_size=1)
        assert summary.low_joules is not None
        assert summary.high_joules is not None
        covered += summary.low_joules <= 3.0 <= summary.high_joules
    assert covered / runs == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / runs))
