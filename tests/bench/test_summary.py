from __future__ import annotations

import math
import random

import pytest
from sample_records import make_case, make_failure, make_measurement, make_record

from infsa_bench.analyze.summary import SummaryRow, median_interval, summarize
from infsa_bench.record import FailureKind


@pytest.mark.parametrize(
    ("count", "ranks"),
    [
        (1, None),
        (5, None),
        (6, (1, 6)),
        (10, (2, 9)),
        (20, (6, 15)),
        (30, (10, 21)),
        (50, (18, 33)),
        (100, (40, 61)),
    ],
)
def test_ranks_of_the_interval(count: int, ranks: tuple[int, int] | None) -> None:
    samples = [float(rank) for rank in range(1, count + 1)]
    random.Random(0).shuffle(samples)
    assert median_interval(samples) == ranks


def test_the_interval_is_the_narrowest_that_covers_enough() -> None:
    """Against whole-number binomials: rank l covers 1 - 2 P(X < l), and l + 1 would cover less than 95 %."""
    for count in range(1, 301):
        cumulated = [0]
        for successes in range(count + 1):
            cumulated.append(cumulated[-1] + math.comb(count, successes))
        covering = [rank for rank in range(1, count // 2 + 1) if 2 * cumulated[rank] * 20 <= 2**count]
        found = median_interval(list(range(1, count + 1)))
        assert found == ((covering[-1], count + 1 - covering[-1]) if covering else None)


@pytest.mark.parametrize("count", [6, 20, 45])
def test_coverage_of_the_interval(count: int) -> None:
    """Skewed samples with a median of 1, as latencies are."""
    chance = random.Random(count)
    trials = 1500
    covered = 0
    for _ in range(trials):
        interval = median_interval([math.exp(chance.gauss(0, 1)) for _ in range(count)])
        assert interval is not None
        covered += interval[0] <= 1.0 <= interval[1]
    sampling_error = math.sqrt(0.95 * 0.05 / trials)
    assert covered / trials >= 0.95 - 3 * sampling_error


def test_a_measured_row() -> None:
    measurement = make_measurement(
        [0.04, 0.01, 0.02, 0.06, 0.03, 0.05], gpu_seconds=(0.001, 0.003, 0.002), flags=("time_limited",)
    )
    assert summarize([make_record(measurement, batch_size=7, environment="here")]) == [
        SummaryRow(
            case=make_case(batch_size=7),
            environment="here",
            status="ok",
            reason="",
            latency_seconds=0.035,
            latency_low_seconds=0.01,
            latency_high_seconds=0.06,
            timed_iterations=6,
            gpu_seconds=0.002,
            images_per_second=7 / 0.035,
            base_parameters=57_650_152,
            parameters=57_650_152,
            model_bytes=230_600_608,
            peak_memory_bytes=300 * 2**20,
            flags=("time_limited",),
        )
    ]


def test_few_samples_have_no_interval_and_unknowns_stay_unknown() -> None:
    (row,) = summarize([make_record(make_measurement([0.01, 0.02, 0.04], peak_memory_bytes=None))])
    assert row.latency_seconds == 0.02
    assert (row.latency_low_seconds, row.latency_high_seconds) == (None, None)
    assert row.timed_iterations == 3
    assert row.gpu_seconds is None
    assert row.peak_memory_bytes is None


@pytest.mark.parametrize("kind", ["oom", "host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error"])
def test_a_failed_row_has_no_quantities(kind: FailureKind) -> None:
    failure = make_failure(kind, "why it failed", requested_bytes=1, predicted_seconds=1.0, predicted_bytes=1)
    assert summarize([make_record(failure, environment="here")]) == [
        SummaryRow(case=make_case(), environment="here", status=kind, reason="why it failed")
    ]
    (row,) = summarize([make_record(failure)])
    quantities = (
        row.latency_seconds,
        row.latency_low_seconds,
        row.latency_high_seconds,
        row.timed_iterations,
        row.gpu_seconds,
        row.images_per_second,
        row.parameters,
        row.model_bytes,
        row.peak_memory_bytes,
    )
    assert set(quantities) == {None}


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
