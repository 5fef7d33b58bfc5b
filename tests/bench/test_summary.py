from __future__ import annotations

import dataclasses
import math
import random
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_records import (
    CALIBRATION,
    ENVIRONMENT,
    GPU_STATE,
    make_case,
    make_energy,
    make_failure,
    make_measurement,
    make_no_energy,
    make_record,
)

from infsa_bench.analyze.energy import pool_energy
from infsa_bench.analyze.summary import SummaryRow, summarize
from infsa_bench.codec import decode, encode
from infsa_bench.intervals import effective_samples, lag1_autocorrelation, median_interval
from infsa_bench.machine import GpuState
from infsa_bench.record import FailureKind, Measurement, Outcome, Record

T_975_WITH_2_DEGREES = 4.302652729911275
"""Quantile of Student's distribution, from a printed table."""


def summarize_one(*outcomes: Outcome, **case_changes: Any) -> SummaryRow:
    """The row of one cell with these outcomes as its replicates."""
    records = [make_record(outcome, replicate=i, **case_changes) for i, outcome in enumerate(outcomes)]
    (row,) = summarize(records)
    return row


def state_with(power_limit_watts: float | None) -> GpuState:
    return dataclasses.replace(GPU_STATE, power_limit_watts=power_limit_watts)


def test_a_measured_row() -> None:
    latencies_seconds = [0.04, 0.01, 0.02, 0.06, 0.03, 0.05]
    measurement = make_measurement(
        latencies_seconds,
        seconds_per_iteration=(0.034, 0.033, 0.036),
        gpu_seconds=(0.001, 0.003, 0.002),
        graph_seconds_per_iteration=(0.03, 0.032),
        launch_bound=False,
        peak_reserved_bytes=400 * 2**20,
        nvml_process_bytes=900 * 2**20,
        energy=make_energy(doubts=("shared",), detail="somebody else", trials=make_energy().trials),
        state_before=GPU_STATE,
        flags=("time_limited",),
    )
    energy = pool_energy([measurement.energy], 7)
    assert summarize([make_record(measurement, batch_size=7, environment="here")]) == [
        SummaryRow(
            case=make_case(batch_size=7),
            environment="here",
            status="ok",
            reason="",
            processes=1,
            latency_seconds=0.035,
            latency_low_seconds=0.01,
            latency_high_seconds=0.06,
            latency_interval="within_process",
            latency_min_seconds=0.01,
            latency_p5_seconds=0.0125,
            latency_p95_seconds=pytest.approx(0.0575, rel=1e-15),
            latency_p99_seconds=None,
            latency_max_seconds=0.06,
            timed_iterations=6,
            lag1_autocorrelation=lag1_autocorrelation(latencies_seconds),
            effective_samples=effective_samples(latencies_seconds),
            gpu_seconds=0.002,
            seconds_per_iteration=0.034,
            graph_seconds_per_iteration=0.031,
            launch_bound=False,
            images_per_second=7 / 0.034,
            base_parameters=57_650_152,
            parameters=57_650_152,
            model_bytes=230_600_608,
            peak_memory_bytes=300 * 2**20,
            peak_reserved_bytes=400 * 2**20,
            nvml_process_bytes=900 * 2**20,
            stage_seconds=tuple(measurement.stage_seconds.items()),
            matmul_flops=2**32,
            elementwise_flops=2**24,
            operator_bytes=2**30,
            achieved_flops_per_second=2**32 / 0.034,
            achieved_bytes_per_second=2**30 / 0.034,
            energy_status="measured_low_confidence",
            energy_reason="shared",
            energy_detail="somebody else",
            energy_source="nvml_counter",
            energy_scope="gpu",
            energy_preset="quick",
            energy_trials=3,
            joules_per_image=energy.joules_per_image,
            joules_per_image_low=energy.low_joules,
            joules_per_image_high=energy.high_joules,
            net_joules_per_image=energy.net_joules_per_image,
            average_power_watts=300.0,
            idle_power_watts=75.0,
            power_limit_watts=700.0,
            power_capped_fraction=0.0,
            window_images_per_second=700.0,
            energy_systematic_relative=0.05,
            energy_crosscheck_gap=energy.crosscheck_gap,
            energy_change_per_trial=energy.change_per_trial,
            temperature_low_celsius=energy.temperature_low_celsius,
            temperature_high_celsius=energy.temperature_high_celsius,
            flags=("time_limited", "energy_throughput_gap"),
        )
    ]


def test_few_samples_have_no_interval_and_unknowns_stay_unknown() -> None:
    row = summarize_one(make_measurement([0.01, 0.02, 0.04], peak_memory_bytes=None))
    assert row.latency_seconds == 0.02
    assert (row.latency_low_seconds, row.latency_high_seconds, row.latency_interval) == (None, None, None)
    assert (row.timed_iterations, row.processes) == (3, 1)
    unknown = (
        row.latency_p99_seconds,
        row.gpu_seconds,
        row.graph_seconds_per_iteration,
        row.launch_bound,
        row.peak_memory_bytes,
        row.peak_reserved_bytes,
        row.nvml_process_bytes,
    )
    assert set(unknown) == {None}


def test_energy_that_was_not_measured_is_no_number() -> None:
    row = summarize_one(make_measurement(energy=make_no_energy("rapl_permission", "ask the administrator")))
    assert (row.energy_status, row.energy_reason) == ("not_measured", "rapl_permission")
    assert row.energy_detail == "ask the administrator"
    names = [field.name for field in dataclasses.fields(SummaryRow)]
    numbers = names[names.index("energy_source") : names.index("flags")]
    assert {getattr(row, name) for name in numbers} == {None}


@pytest.mark.parametrize("kind", ["oom", "host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error"])
def test_a_failed_row_has_no_quantities(kind: FailureKind) -> None:
    failure = make_failure(kind, "why it failed", requested_bytes=1, predicted_seconds=1.0, predicted_bytes=1)
    assert summarize([make_record(failure, environment="here")]) == [
        SummaryRow(case=make_case(), environment="here", status=kind, reason="why it failed")
    ]
    (row,) = summarize([make_record(failure)])
    names = [field.name for field in dataclasses.fields(SummaryRow)]
    quantities = names[names.index("processes") : names.index("flags")]
    assert {getattr(row, name) for name in quantities} == {None}


def test_rows_are_ordered_and_ties_keep_the_order_of_measuring() -> None:
    ordered = [
        make_record(config="24L-16H", resolution=512),
        make_record(phase="infer", resolution=224, mechanism="softmax"),
        make_record(phase="infer", resolution=224, mechanism="agent"),
        make_record(phase="infer", resolution=1024, mechanism="agent"),
        make_record(phase="infer", batch_size=8, resolution=224),
        make_record(phase="train", resolution=224),
    ]
    shuffled = [ordered[i] for i in (5, 4, 3, 1, 0, 2)]
    assert [row.case for row in summarize(shuffled)] == [record.case for record in ordered]
    assert summarize([]) == []


def test_replicates_are_one_row_and_everything_else_is_not() -> None:
    records = [make_record(replicate=replicate, resolution=side) for replicate in range(3) for side in (224, 512)]
    records += [
        make_record(options=(("rho", "0.5"),)),
        make_record(implementation="fast"),
        make_record(environment="elsewhere"),
    ]
    rows = summarize(records)
    assert len(rows) == len({(row.case.cell, row.environment) for row in rows}) == 5
    assert [row.processes for row in rows if row.case.cell == make_case().cell] == [3, 1]
    # Whichever replicate was recorded first, the row's case is the same.
    assert summarize([make_record(replicate=2), make_record(replicate=1)])[0].case == make_case()


def test_medians_are_pooled_over_processes_not_over_samples() -> None:
    """The slow process has most samples: a median of them all would be its own."""
    times = [[0.010, 0.011, 0.030], [0.012] * 3, [0.020] * 50]
    row = summarize_one(
        *(
            make_measurement(
                seconds,
                gpu_seconds=tuple(value / 2 for value in seconds),
                graph_seconds_per_iteration=tuple(value / 4 for value in seconds),
            )
            for seconds in times
        ),
        batch_size=3,
    )
    assert row.latency_seconds == row.seconds_per_iteration == 0.012
    assert (row.gpu_seconds, row.graph_seconds_per_iteration) == (0.006, 0.003)
    assert row.images_per_second == 3 / 0.012
    assert (row.processes, row.timed_iterations) == (3, 56)


def test_the_interval_of_one_process_is_that_of_its_samples() -> None:
    samples = [0.010 + 0.0001 * (i * 7 % 31) for i in range(31)]
    row = summarize_one(make_measurement(samples))
    expected = median_interval(samples)
    assert expected is not None
    assert expected.block_length == 1
    assert (row.latency_low_seconds, row.latency_high_seconds) == (expected.low, expected.high)
    assert row.latency_interval == "within_process"


def test_correlated_samples_have_the_interval_of_their_blocks() -> None:
    chance = random.Random(1)
    samples = [0.01]
    for _ in range(399):
        samples.append(0.01 + 0.6 * (samples[-1] - 0.01) + chance.gauss(0, 1e-4))
    row = summarize_one(make_measurement(samples))
    expected = median_interval(samples)
    assert expected is not None
    assert expected.block_length > 1
    assert (row.latency_low_seconds, row.latency_high_seconds) == (expected.low, expected.high)
    assert row.lag1_autocorrelation == pytest.approx(0.6, abs=0.1)
    assert row.effective_samples == pytest.approx(100, rel=0.4)


def test_two_processes_have_no_interval() -> None:
    row = summarize_one(make_measurement([0.01] * 30), make_measurement([0.02] * 30))
    assert row.latency_seconds == 0.015
    assert (row.latency_low_seconds, row.latency_high_seconds, row.latency_interval) == (None, None, None)


def test_three_processes_have_students_interval() -> None:
    """Medians of 10, 10 e^0.01 and 10 e^-0.01 ms: logarithms with a standard deviation of 0.01."""
    medians = [0.01, 0.01 * math.exp(0.01), 0.01 * math.exp(-0.01)]
    row = summarize_one(*(make_measurement([median * 0.9, median, median * 1.5]) for median in medians))
    half_width = T_975_WITH_2_DEGREES * 0.01 / math.sqrt(3)
    assert row.latency_seconds == 0.01
    assert row.latency_low_seconds == pytest.approx(0.01 * math.exp(-half_width), rel=1e-12)
    assert row.latency_high_seconds == pytest.approx(0.01 * math.exp(half_width), rel=1e-12)
    assert row.latency_interval == "between_processes"


def test_the_interval_between_processes_covers() -> None:
    """Processes that differ by 2 %, samples within by 1 %: the interval of one of them would cover a third."""
    chance = random.Random(5)
    runs, covered = 400, 0
    for _ in range(runs):
        centres = [0.01 * math.exp(chance.gauss(0, 0.02)) for _ in range(3)]
        row = summarize_one(
            *(make_measurement([c * math.exp(chance.gauss(0, 0.01)) for _ in range(11)]) for c in centres)
        )
        assert row.latency_low_seconds is not None
        assert row.latency_high_seconds is not None
        covered += row.latency_low_seconds <= 0.01 <= row.latency_high_seconds
    assert covered / runs == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / runs))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=40), min_size=1, max_size=5),
    st.integers(min_value=1, max_value=64),
)
def test_a_row_holds_together(times: list[list[float]], batch_size: int) -> None:
    row = summarize_one(*(make_measurement(seconds) for seconds in times), batch_size=batch_size)
    assert row.latency_seconds is not None
    assert row.latency_min_seconds is not None
    assert row.latency_p5_seconds is not None
    assert row.latency_p95_seconds is not None
    assert row.latency_min_seconds <= row.latency_p5_seconds <= row.latency_p95_seconds
    assert row.latency_min_seconds <= row.latency_seconds
    assert (row.latency_low_seconds is None) == (row.latency_high_seconds is None) == (row.latency_interval is None)
    if row.latency_low_seconds is not None and row.latency_high_seconds is not None:
        assert row.latency_low_seconds <= row.latency_seconds <= row.latency_high_seconds
    assert row.timed_iterations == sum(map(len, times))
    assert row.effective_samples is not None
    assert 0 <= row.effective_samples <= row.timed_iterations * (1 + 1e-12)


def test_percentiles_are_those_of_all_samples() -> None:
    """Ranks 0 to 100 split over two processes: the percentiles are the ranks."""
    ranks = list(range(1, 102))
    random.Random(3).shuffle(ranks)
    row = summarize_one(make_measurement(ranks[:40]), make_measurement(ranks[40:]))
    assert row.latency_min_seconds == 1
    assert (row.latency_p5_seconds, row.latency_p95_seconds, row.latency_p99_seconds) == (6, 96, 100)


@pytest.mark.parametrize(("count", "known"), [(99, False), (100, True)])
def test_the_99th_percentile_needs_100_samples(count: int, known: bool) -> None:
    assert (summarize_one(make_measurement([0.01] * count)).latency_p99_seconds is not None) == known


def test_effective_samples_add_up_and_correlations_do_not() -> None:
    chance = random.Random(2)
    processes = [[chance.uniform(0.01, 0.02) for _ in range(20)] for _ in range(3)]
    row = summarize_one(*map(make_measurement, processes))
    assert row.effective_samples == sum(map(effective_samples, processes))
    assert row.lag1_autocorrelation == statistics.median(map(lag1_autocorrelation, processes))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((None,), None),
        ((None, False), False),
        ((False, True, False), True),
        ((True, None), True),
    ],
)
def test_a_cell_is_launch_bound_where_any_process_saw_it(
    answers: tuple[bool | None, ...], expected: bool | None
) -> None:
    row = summarize_one(*(make_measurement(launch_bound=answer) for answer in answers))
    assert row.launch_bound is expected
    assert row.flags == (("launch_bound",) if expected else ())


@pytest.mark.parametrize(
    ("factor", "flagged"), [(0.94, True), (0.96, False), (1.0, False), (1.04, False), (1.06, True)]
)
def test_a_gap_between_latency_and_throughput_is_flagged(factor: float, flagged: bool) -> None:
    row = summarize_one(make_measurement([0.02 * factor], seconds_per_iteration=(0.02,)), batch_size=4)
    assert row.images_per_second == 200.0
    assert row.flags == (("latency_throughput_gap",) if flagged else ())


def test_the_largest_memory_counts() -> None:
    def measurement(allocated: int | None, reserved: int | None, seen: int | None) -> Measurement:
        return make_measurement(peak_memory_bytes=allocated, peak_reserved_bytes=reserved, nvml_process_bytes=seen)

    row = summarize_one(measurement(5, None, 9), measurement(7, None, None), measurement(None, None, 8))
    assert (row.peak_memory_bytes, row.peak_reserved_bytes, row.nvml_process_bytes) == (7, None, 9)


@pytest.mark.parametrize(
    ("limits", "expected", "flags"),
    [
        ((None,), None, ()),
        ((700.0, None, 700.0), 700.0, ()),
        ((500.0, 700.0), 700.0, ("power_limit_changed",)),
    ],
    ids=str,
)
def test_the_power_limit_that_held(
    limits: tuple[float | None, ...], expected: float | None, flags: tuple[str, ...]
) -> None:
    row = summarize_one(*(make_measurement(state_before=state_with(limit)) for limit in limits))
    assert (row.power_limit_watts, row.flags) == (expected, flags)
    assert summarize_one(make_measurement(state_before=None)).power_limit_watts is None


def test_flags_are_those_of_any_replicate_once() -> None:
    row = summarize_one(
        make_measurement(flags=("time_limited",)),
        make_measurement(flags=("not_converged", "time_limited")),
        make_measurement(flags=("launch_bound",), launch_bound=True),
    )
    assert row.flags == ("time_limited", "not_converged", "launch_bound")


def test_replicates_that_failed_are_flagged_beside_the_numbers_of_the_others() -> None:
    row = summarize_one(
        make_failure("oom"),
        make_measurement([0.01], flags=("time_limited",)),
        make_failure("timeout"),
        make_measurement([0.03]),
        make_failure("timeout"),
    )
    assert (row.status, row.reason, row.processes, row.latency_seconds) == ("ok", "", 2, 0.02)
    assert row.flags == ("time_limited", "processes_disagree", "timeout_in_2_of_5", "oom_in_1_of_5")
    assert row.energy_status == "not_measured"


@pytest.mark.parametrize(
    ("kinds", "status", "reason"),
    [
        (("oom", "timeout", "timeout"), "timeout", "failure 1"),
        (("oom", "timeout"), "oom", "failure 0"),
        (("crash", "oom", "oom", "crash"), "crash", "failure 0"),
        (("skipped", "skipped"), "skipped", "failure 0"),
    ],
    ids=str,
)
def test_where_all_failed_the_most_frequent_kind_is_told(
    kinds: tuple[FailureKind, ...], status: str, reason: str
) -> None:
    row = summarize_one(*(make_failure(kind, f"failure {i}") for i, kind in enumerate(kinds)))
    assert (row.status, row.reason, row.flags) == (status, reason, ())
    assert row.latency_seconds is None
    assert row.processes is None


def test_energy_is_pooled_over_the_replicates_that_ran() -> None:
    readings = [make_energy([600.0 + i], doubts=("single_trial",)) for i in range(3)]
    row = summarize_one(make_failure(), *(make_measurement(energy=reading) for reading in readings), batch_size=2)
    expected = pool_energy(readings, 2)
    assert (row.energy_status, row.energy_reason, row.energy_trials) == ("measured", None, 3)
    assert row.joules_per_image == expected.joules_per_image == pytest.approx(601.0 / 400)
    assert (row.joules_per_image_low, row.joules_per_image_high) == (expected.low_joules, expected.high_joules)


def random_records(seed: int) -> list[Record]:
    """Two cells of three replicates each, with times and energies as real clocks and counters give them."""
    chance = random.Random(seed)

    def times(count: int) -> tuple[float, ...]:
        return tuple(0.0123 * math.exp(chance.gauss(0, 0.05)) for _ in range(count))

    def outcome() -> Measurement:
        return make_measurement(
            times(chance.randrange(3, 150)),
            seconds_per_iteration=times(20),
            gpu_seconds=times(20),
            graph_seconds_per_iteration=times(5),
            energy=make_energy([chance.gauss(600, 3) for _ in range(3)], calibration=CALIBRATION),
            state_before=GPU_STATE,
        )

    records = [make_record(outcome(), replicate=i, resolution=side) for i in range(3) for side in (224, 512)]
    return [*records, make_record(make_failure(), resolution=1024)]


@pytest.mark.parametrize("seed", range(5))
def test_stored_samples_give_the_same_rows_bit_for_bit(seed: int) -> None:
    records = random_records(seed)
    stored = [encode(record).encode() for record in records]
    rows = summarize(records)
    assert summarize([decode(Record, line) for line in stored]) == rows
    # Equality of floats is that of their bits, signed zeros aside; their text has every digit.
    assert [encode(row) for row in summarize([decode(Record, line) for line in stored])] == [
        encode(row) for row in rows
    ]


def test_rows_hold_plain_numbers() -> None:
    for row in summarize(random_records(0)):
        for field in dataclasses.fields(row):
            assert not isinstance(getattr(row, field.name), np.generic), field.name


def test_time_spent_is_that_of_all_processes() -> None:
    outcomes = [make_measurement(stage_seconds={"build": 1.0, "latency": 2.0}), make_failure()]
    outcomes.append(make_measurement(stage_seconds={"build": 0.5, "window": 4.0}))
    assert summarize_one(*outcomes).stage_seconds == (("build", 1.5), ("latency", 2.0), ("window", 4.0))


@pytest.mark.parametrize(("seconds_per_iteration", "is_flagged"), [(0.0100, False), (0.0104, False), (0.0106, True)])
def test_energy_under_other_conditions_than_the_throughput_is_flagged(
    seconds_per_iteration: float, is_flagged: bool
) -> None:
    """The windows of the energy saw 100 iterations a second."""
    measurement = make_measurement(
        [seconds_per_iteration] * 3, seconds_per_iteration=[seconds_per_iteration] * 3, energy=make_energy()
    )
    assert ("energy_throughput_gap" in summarize_one(measurement).flags) == is_flagged


@pytest.mark.parametrize(("other", "is_flagged"), [(0.0105, False), (0.0112, True), (0.0088, True)])
def test_processes_that_disagree_are_flagged(other: float, is_flagged: bool) -> None:
    measurements = [make_measurement([value] * 3, seconds_per_iteration=[value] * 3) for value in (0.010, other)]
    assert ("processes_disagree" in summarize_one(*measurements).flags) == is_flagged


def test_parameters_of_a_model_that_was_not_built_are_not_given() -> None:
    """The formula is of tied queries and keys; with a key of its own the model has more."""
    untied = make_record(make_measurement(), mechanism="infsa-linear", options=(("tie_qk", "0"),))
    (row,) = summarize([untied])
    assert row.base_parameters is None


def test_like_devices_share_a_row_and_others_have_their_own() -> None:
    one, twin = (
        dataclasses.replace(ENVIRONMENT, device="cuda:0"),
        dataclasses.replace(ENVIRONMENT, device="cuda:1", device_uuid="GPU-1"),
    )
    other = dataclasses.replace(twin, device_name="NVIDIA L4")
    environments = {"one": one, "twin": twin, "other": other}
    records = [
        dataclasses.replace(make_record(replicate=replicate), environment=key)
        for replicate, key in enumerate(["twin", "one", "other", "twin", "elsewhere"])
    ]
    rows = summarize(records, environments=environments)
    assert [(row.environment, row.processes, "several_devices" in row.flags) for row in rows] == [
        ("one", 3, True),
        ("other", 1, False),
        ("elsewhere", 1, False),
    ]
    # A failure elsewhere makes no number come from two devices.
    failed = dataclasses.replace(make_record(make_failure(), replicate=1), environment="one")
    (row,) = summarize([records[0], failed], environments=environments)
    assert row.flags == ("oom_in_1_of_2",)
