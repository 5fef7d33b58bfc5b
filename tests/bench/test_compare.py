"""Verdicts on two sides: what is a regression, what is none, and what nobody can tell."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import CALIBRATION, ENVIRONMENT, GPU, GPU_STATE, make_energy, make_failure, make_record
from sample_sides import cell_records, failed_records, make_side, measured, noisy

from infsa_bench.analyze.baseline import Baseline, Cell, Replicate
from infsa_bench.analyze.compare import Comparison, compare
from infsa_bench.analyze.noise import CellNoise, Noise
from infsa_bench.analyze.verdict import Judged, Verdict
from infsa_bench.record import Record

STEADY = (1.000, 1.001, 0.999, 1.0005, 0.9995)
ALLOCATED = {"memory_source": "cuda_allocator"}
SWAPPED: dict[Verdict, Verdict] = {"REGRESSED": "IMPROVED", "IMPROVED": "REGRESSED"}


def judged(comparison: Comparison, metric: str = "latency", cell: str = "") -> Judged:
    (found,) = (item for item in comparison.judged if item.metric == metric and cell in item.cell)
    return found


def compared(base: Sequence[Record], new: Sequence[Record], **options: Any) -> Comparison:
    return compare(make_side(base), make_side(new, name="new"), **options)


def scaled(factor: float) -> list[float]:
    return [factor * value for value in STEADY]


def test_a_run_against_itself_is_the_same_everywhere() -> None:
    records = [*noisy(), *cell_records([0.5], mechanism="soft"), *failed_records(mechanism="flatten")]
    comparison = compared(records, records)
    assert {item.verdict for item in comparison.judged} == {"SAME"}
    assert comparison.exit_code(is_strict=True) == 0
    assert comparison.differences == ()


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.10, "REGRESSED"), (1.05, "REGRESSED"), (1.02, "SAME"), (1.0001, "SAME"), (0.98, "SAME"), (0.90, "IMPROVED")],
)
def test_latency_against_its_margin(factor: float, verdict: str) -> None:
    found = judged(compared(cell_records(STEADY, changes=ALLOCATED), cell_records(scaled(factor), changes=ALLOCATED)))
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(factor)
    assert found.low is not None
    assert found.high is not None
    assert found.low < factor < found.high
    assert (found.base_count, found.new_count) == (5, 5)


def test_throughput_is_what_is_said_of_the_queue_kept_full() -> None:
    found = judged(compared(cell_records(STEADY), cell_records(scaled(1.25))), "throughput")
    assert found.verdict == "REGRESSED"
    assert found.ratio == pytest.approx(0.8)
    assert found.base_value == pytest.approx(1.0)
    assert found.low is not None
    assert found.low < 0.8 < (found.high or 0)


def test_noise_around_the_margin_is_ambiguous_and_fails_only_a_strict_gate() -> None:
    comparison = compared(cell_records([1.0, 1.05, 0.95]), cell_records([1.04, 1.1, 0.98]))
    assert judged(comparison).verdict == "AMBIGUOUS"
    assert comparison.exit_code(is_strict=False) == 0
    assert comparison.exit_code(is_strict=True) == 4


def test_what_is_suspicious_by_itself_but_not_among_many_is_not_silently_fine() -> None:
    """One of many cells at p = 0.02 or so: no regression, and said to be ambiguous."""
    base, new = noisy(deviation=0.02, seed=3), noisy(deviation=0.02, seed=4)
    slower = [0.0224 * factor for factor in (1.065, 1.085, 1.05, 1.07, 1.06)]
    rest = [record for record in new if not (record.case.mechanism == "mlla" and record.case.resolution == 224)]
    new = [*rest, *cell_records(slower, mechanism="mlla", resolution=224, changes=ALLOCATED)]
    found = judged(compared(base, new), cell="mlla.reference/4L-64H/r224")
    assert found.verdict == "AMBIGUOUS"
    assert "not among so many cells" in found.reason
    assert found.p_value is not None
    assert found.q_value is not None
    assert found.p_value < 0.05 <= found.q_value


@pytest.mark.parametrize("count", [1, 2])
def test_few_replicates_need_the_noise_of_the_machine(count: int) -> None:
    base, new = cell_records(STEADY[:count]), cell_records(scaled(1.10)[:count])
    found = judged(compared(base, new))
    assert found.verdict == "AMBIGUOUS"
    assert "replicates; 3 are needed" in found.reason
    quiet, loud = (judged(compared(base, new, noise=make_noise(deviation))) for deviation in (0.002, 0.2))
    assert (quiet.verdict, loud.verdict) == ("REGRESSED", "AMBIGUOUS")
    assert "noise of the machine" in quiet.tags
    same = judged(compared(base, cell_records(scaled(1.001)[:count]), noise=make_noise(0.002)))
    assert same.verdict == "SAME"


def make_noise(deviation: float) -> Noise:
    cell = CellNoise(
        cell="infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager",
        metric="latency",
        deviation=deviation,
        degrees=9,
    )
    return Noise(
        created_utc="2026-01-02T03:04:05+00:00",
        device_type="cpu",
        device_name=ENVIRONMENT.device_name,
        torch_threads=2,
        source="aa",
        cells=(cell,),
        pooled=(),
        confirming_replicates=10,
        detectable_effect=0.05,
    )


def test_allocated_memory_needs_no_test() -> None:
    def memory(peak: int, count: int = 1) -> list[Record]:
        return cell_records([1.0] * count, changes={"peak_memory_bytes": peak, **ALLOCATED})

    gibibyte, mebibyte = 2**30, 2**20
    for peak, verdict in (
        (gibibyte, "SAME"),
        (gibibyte + 5 * mebibyte, "SAME"),
        (gibibyte + 6 * mebibyte, "REGRESSED"),
        (gibibyte - 6 * mebibyte, "IMPROVED"),
    ):
        assert judged(compared(memory(gibibyte), memory(peak)), "peak_memory").verdict == verdict
    # One mebibyte of a small model is no news.
    assert judged(compared(memory(10 * mebibyte), memory(11 * mebibyte)), "peak_memory").verdict == "SAME"
    assert judged(compared(memory(10 * mebibyte), memory(11 * mebibyte + 1)), "peak_memory").verdict == "REGRESSED"


def test_memory_as_the_system_sees_it_is_tested_like_a_time() -> None:
    def resident(*peaks: int) -> list[Record]:
        return [
            make_record(measured(1.0, peak_memory_bytes=peak * 2**20), replicate=index)
            for index, peak in enumerate(peaks)
        ]

    assert judged(compared(resident(1000), resident(1100)), "peak_memory").verdict == "AMBIGUOUS"
    found = judged(compared(resident(1000, 1001, 1000), resident(1100, 1101, 1102)), "peak_memory")
    assert found.verdict == "REGRESSED"


@pytest.mark.parametrize("kind", ["oom", "host_oom", "crash", "timeout", "killed", "error", "unsupported", "skipped"])
def test_a_new_failure_is_a_regression_and_its_end_an_improvement(kind: str) -> None:
    fine, failed = cell_records(STEADY), failed_records(kind)
    worse, better = compared(fine, failed), compared(failed, fine)
    found = judged(worse, "status")
    assert (found.verdict, found.direction) == ("STATUS_CHANGED", "worse")
    assert found.reason == f"ok -> {kind}"
    assert worse.exit_code(is_strict=False) == 1
    found = judged(better, "status")
    assert (found.verdict, found.direction) == ("STATUS_CHANGED", "better")
    assert better.exit_code(is_strict=False) == 0


def test_one_failure_in_five_is_a_regression_and_names_its_share() -> None:
    new = [*cell_records(STEADY[:4]), make_record(make_failure("oom"), replicate=4)]
    found = judged(compared(cell_records(STEADY), new), "status")
    assert (found.verdict, found.direction) == ("STATUS_CHANGED", "worse")
    assert found.reason == "ok -> oom in 1 of 5 processes"


def test_one_process_left_out_for_want_of_time_is_no_failure() -> None:
    new = [*cell_records(STEADY[:4]), make_record(make_failure("skipped"), replicate=4)]
    comparison = compared(cell_records(STEADY), new)
    assert not [item for item in comparison.judged if item.metric == "status"]
    assert comparison.exit_code(is_strict=False) == 0


def test_failing_in_another_way_is_neither() -> None:
    comparison = compared(failed_records("oom"), failed_records("timeout"))
    found = judged(comparison, "status")
    assert (found.verdict, found.direction, found.reason) == ("STATUS_CHANGED", "neither", "oom -> timeout")
    assert comparison.exit_code(is_strict=False) == 0


def test_a_cell_that_is_gone_is_a_regression_and_a_new_one_is_listed() -> None:
    kept, other = cell_records(STEADY), cell_records(STEADY, mechanism="mlla")
    gone = compared([*kept, *other], kept)
    found = judged(gone, "status", "mlla")
    assert (found.direction, found.reason) == ("worse", "ok -> missing")
    assert gone.exit_code(is_strict=False) == 1
    added = compared(kept, [*kept, *other])
    assert added.exit_code(is_strict=True) == 0
    assert added.added == ("infsa/mlla.reference/4L-64H/r224/b1/fp32/infer/eager",)


def test_a_lower_maximum_resolution_is_a_regression() -> None:
    base = [record for side in (224, 384, 512) for record in cell_records(STEADY, resolution=side)]
    new = [record for side in (224, 384) for record in cell_records(STEADY, resolution=side)]
    new += failed_records(resolution=512)
    found = judged(compared(base, new), "max_resolution")
    assert (found.verdict, found.base_value, found.new_value) == ("REGRESSED", 512, 384)
    assert judged(compared(new, base), "max_resolution").verdict == "IMPROVED"
    assert "/r*/" in found.cell
    # A side that went further on purpose is no improvement over one that did not try.
    shorter = base[:10]
    assert judged(compared(shorter, base), "max_resolution").verdict == "SAME"


def gpu_records(joules: Sequence[float], seconds: Sequence[float], clocks: Sequence[int]) -> list[Record]:
    records = []
    for index, (energy, value, clock) in enumerate(zip(joules, seconds, clocks, strict=True)):
        state = dataclasses.replace(GPU_STATE, sm_clock_mhz=clock)
        outcome = measured(value, energy=make_energy([energy] * 3), state_before=state, state_after=state, **ALLOCATED)
        records.append(make_record(outcome, replicate=index))
    return records


BOARD = dataclasses.replace(
    ENVIRONMENT, device="cuda:0", device_name="NVIDIA H200", device_uuid=GPU.uuid, gpu=GPU, cuda_version="12.8"
)


def test_energy_needs_the_same_board() -> None:
    base = gpu_records([600.0, 601.0, 599.0], [1.0] * 3, [1980] * 3)
    new = gpu_records([700.0, 701.0, 699.0], [1.0] * 3, [1980] * 3)
    same = compare(make_side(base, environment=BOARD), make_side(new, environment=BOARD))
    assert judged(same, "energy").verdict == "REGRESSED"
    assert judged(same, "energy").base_value == pytest.approx(3.0)
    other = dataclasses.replace(BOARD, device_uuid="GPU-other", gpu=dataclasses.replace(GPU, uuid="GPU-other"))
    found = judged(compare(make_side(base, environment=BOARD), make_side(new, environment=other)), "energy")
    assert (found.verdict, found.reason) == ("NOT_COMPARABLE", "another GPU: its sensor has another gain")


def test_energy_has_a_margin_of_five_percent() -> None:
    base = gpu_records([600.0, 601.0, 599.0], [1.0] * 3, [1980] * 3)
    new = gpu_records([624.0, 625.0, 623.0], [1.0] * 3, [1980] * 3)
    found = judged(compare(make_side(base, environment=BOARD), make_side(new, environment=BOARD)), "energy")
    assert found.verdict == "SAME"


def test_energy_of_one_process_is_told_by_its_trials() -> None:
    base = [make_record(measured(1.0, energy=make_energy([600.0, 601.0, 599.0])))]
    new = [make_record(measured(1.0, energy=make_energy([700.0, 701.0, 699.0])))]
    found = judged(compare(make_side(base, environment=BOARD), make_side(new, environment=BOARD)), "energy")
    assert found.verdict == "REGRESSED"
    assert "within one process" in found.tags


def test_energy_that_is_not_measured_any_more_is_not_comparable() -> None:
    base = gpu_records([600.0, 601.0, 599.0], [1.0] * 3, [1980] * 3)
    found = judged(compare(make_side(base, environment=BOARD), make_side(cell_records(STEADY))), "energy")
    assert found.verdict == "NOT_COMPARABLE"
    mixed = make_energy([600.0] * 3, calibration=dataclasses.replace(CALIBRATION, source="nvml_power"))
    other = [make_record(measured(1.0, energy=mixed), replicate=index) for index in range(3)]
    found = judged(compare(make_side(base, environment=BOARD), make_side(other, environment=BOARD)), "energy")
    assert found.reason == "energy from different sources"


def test_a_slower_clock_is_named() -> None:
    base = gpu_records([600.0] * 3, [1.0, 1.001, 0.999], [1980] * 3)
    slow_clock = gpu_records([600.0] * 3, [1.1, 1.101, 1.099], [1800] * 3)
    slow_program = gpu_records([600.0] * 3, [1.1, 1.101, 1.099], [1980] * 3)
    sides = [make_side(records, environment=BOARD) for records in (base, slow_clock, slow_program)]
    found = judged(compare(sides[0], sides[1]))
    assert (found.verdict, "clock" in found.tags) == ("REGRESSED", True)
    assert "clock" not in judged(compare(sides[0], sides[2])).tags


def test_another_kernel_is_named() -> None:
    base = cell_records(STEADY, changes={"choices": {"backend": "flash"}})
    new = cell_records(scaled(1.5), changes={"choices": {"backend": "math"}})
    assert "backend: flash -> math" in judged(compared(base, new)).tags


def test_swapping_the_sides_turns_regressions_into_improvements() -> None:
    base, new = make_side(noisy(seed=1)), make_side(noisy(seed=2, slower=1.2))
    there, back = compare(base, new), compare(new, base)
    assert {item.verdict for item in there.judged if "softmax" in item.cell and item.metric == "latency"} == {
        "REGRESSED"
    }
    for one, other in zip(there.judged, back.judged, strict=True):
        assert other.verdict == SWAPPED.get(one.verdict, one.verdict)
        assert one.ratio is not None
        assert one.ratio * (other.ratio or 0) == pytest.approx(1)


def test_the_least_detectable_effect_follows_the_noise() -> None:
    quiet = compared(noisy(deviation=0.002, seed=1), noisy(deviation=0.002, seed=2))
    loud = compared(noisy(deviation=0.04, seed=1), noisy(deviation=0.04, seed=2))
    assert 0.03 < quiet.detectable["latency"] < 0.045
    assert loud.detectable["latency"] > 0.1
    assert (quiet.is_too_noisy, loud.is_too_noisy) == (False, True)
    assert loud.exit_code(is_strict=True) == 4


def test_geometric_means_are_per_mechanism() -> None:
    comparison = compared(noisy(deviation=1e-4, seed=1), noisy(deviation=1e-4, seed=2, slower=1.5))
    means = {(mean.mechanism, mean.metric): mean for mean in comparison.means}
    assert means["softmax.reference", "latency"].ratio == pytest.approx(1.5, rel=1e-3)
    assert means["mlla.reference", "latency"].ratio == pytest.approx(1.0, rel=1e-3)
    assert means["mlla.reference", "latency"].cells == 3


def test_sides_that_are_not_comparable_exit_3_unless_that_is_allowed() -> None:
    other = dataclasses.replace(ENVIRONMENT, device_name="another")
    comparison = compare(make_side(noisy()), make_side(noisy(), environment=other))
    assert comparison.exit_code(is_strict=False) == 3
    assert comparison.exit_code(is_strict=False, is_mismatch_allowed=True) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_what_no_clock_can_have_measured_is_not_compared(value: float) -> None:
    """Files cannot hold it and no measurement either; hand-made sides can."""
    base = make_side(cell_records(STEADY))
    (cell,) = base.cells
    broken = (dataclasses.replace(cell.replicates[0], latency_seconds=value), *cell.replicates[1:])
    new = dataclasses.replace(base, cells=(dataclasses.replace(cell, replicates=broken),))
    for comparison in (compare(base, new), compare(new, base)):
        assert judged(comparison).verdict == "NOT_COMPARABLE"
        assert judged(comparison).ratio is None
    assert judged(compare(new, new)).verdict == "NOT_COMPARABLE"


def test_of_two_records_of_one_case_the_last_counts() -> None:
    twice = [*cell_records(scaled(2.0)), *cell_records(STEADY)]
    assert judged(compared(cell_records(STEADY), twice)).verdict == "SAME"


STATUSES = st.sampled_from([None, None, None, "oom", "crash", "timeout", "skipped"])
TIMES = st.floats(1e-6, 1e4) | st.floats(0.9, 1.1)


@st.composite
def sides(draw: st.DrawFn) -> Baseline:
    """A side with any mixture of fine, failed and missing cells and replicates."""
    cells = []
    for mechanism in draw(st.sets(st.sampled_from(["softmax", "mlla", "soft", "agent"]), min_size=1)):
        for resolution in draw(st.sets(st.sampled_from([224, 512]), min_size=1)):
            replicates = []
            for index in range(draw(st.integers(1, 5))):
                failure = draw(STATUSES)
                numbers: dict[str, Any] = {}
                if failure is None:
                    peak = draw(st.none() | st.integers(0, 2**40))
                    numbers = {"latency_seconds": draw(TIMES), "seconds_per_iteration": draw(TIMES)}
                    numbers |= {"peak_memory_bytes": peak, "memory_source": draw(st.sampled_from(["process_rss"]))}
                replicates.append(
                    Replicate(index=index, environment=ENVIRONMENT.key, failure=failure, choices={}, **numbers)
                )
            case = make_record(mechanism=mechanism, resolution=resolution).case
            cells.append(Cell(case=case, replicates=tuple(replicates)))
    return dataclasses.replace(make_side(cell_records([1.0])), cells=tuple(cells))


@settings(max_examples=150, deadline=None)
@given(sides())
def test_any_side_is_the_same_as_itself(side: Baseline) -> None:
    comparison = compare(side, side)
    assert {item.verdict for item in comparison.judged} <= {"SAME"}
    assert comparison.exit_code(is_strict=True) == 0


@settings(max_examples=150, deadline=None)
@given(sides(), sides())
def test_any_two_sides_mirror_each_other(base: Baseline, new: Baseline) -> None:
    there = {(item.cell, item.metric): item for item in compare(base, new).judged}
    back = {(item.cell, item.metric): item for item in compare(new, base).judged}
    for key in there.keys() & back.keys():
        one, other = there[key], back[key]
        assert other.verdict == SWAPPED.get(one.verdict, one.verdict)
        if "missing" not in one.reason + other.reason and one.direction is not None:
            assert {one.direction, other.direction} in ({"worse", "better"}, {"neither"})
        for item in (one, other):
            numbers = (item.ratio, item.low, item.high, item.p_value, item.q_value)
            assert all(number is None or math.isfinite(number) for number in numbers)
            if item.low is not None:
                assert item.ratio is not None
                assert item.low <= item.ratio <= (item.high or 0)
    cells = {cell.name for cell in base.cells} - {cell.name for cell in new.cells}
    assert cells <= {item.cell for item in there.values() if item.is_regression}


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_records_is_irrelevant(shuffler: random.Random) -> None:
    base, new = noisy(seed=1), noisy(seed=2, slower=1.1)
    expected = compared(base, new)
    for records in (base, new):
        shuffler.shuffle(records)
    assert compared(base, new) == expected


def test_entries_come_metric_by_metric_and_cells_by_name() -> None:
    comparison = compared(noisy(), noisy(seed=5))
    metrics = [item.metric for item in comparison.judged]
    assert list(dict.fromkeys(metrics)) == ["latency", "throughput", "peak_memory", "max_resolution"]
    for metric in set(metrics):
        cells = [item.cell for item in comparison.judged if item.metric == metric]
        assert cells == sorted(cells)


@pytest.mark.parametrize(
    ("before", "after", "code"), [(1, 5, 1), (1, 2, 1), (5, 5, 0), (5, 1, 0), (2, 2, 0), (0, 1, 1), (1, 0, 0)]
)
def test_more_failing_processes_are_a_regression(before: int, after: int, code: int) -> None:
    def side(failing: int, name: str) -> Baseline:
        failed = failed_records(count=5)[:failing]
        return make_side([*failed, *cell_records([1.0] * 5)[failing:]], name=name)

    assert compare(side(before, "base"), side(after, "new")).exit_code(is_strict=False) == code


def test_what_cannot_be_compared_is_doubt_if_strict() -> None:
    energy = make_energy()
    base = make_side(cell_records([1.0, 1.001, 1.002], changes={"energy": energy}))
    new = make_side(cell_records([1.0, 1.001, 1.002]), name="new")
    found = compare(base, new)
    assert [item.verdict for item in found.judged if item.metric == "energy"] == ["NOT_COMPARABLE"]
    assert (found.exit_code(is_strict=False), found.exit_code(is_strict=True)) == (0, 4)


def test_what_is_faster_by_more_than_the_margin_is_not_the_same() -> None:
    """Better by 5 %, surely: beyond the margin to that side, too."""
    faster = [0.95, 0.9501, 0.9499, 0.95, 0.95]
    base = make_side(cell_records([1.0, 1.0001, 0.9999, 1.0, 1.0]))
    found = compare(base, make_side(cell_records(faster), name="new"))
    assert {item.verdict for item in found.judged if item.metric in ("latency", "throughput")} == {"IMPROVED"}


def test_data_that_would_miss_seven_percent_are_doubt_if_strict() -> None:
    loud = [1.0, 1.2, 0.8, 1.1, 0.9]
    found = compare(make_side(cell_records(loud)), make_side(cell_records(loud[::-1]), name="new"))
    assert found.exit_code(is_strict=False) == 0
    other = compare(make_side(cell_records(loud)), make_side(cell_records([each + 0.001 for each in loud]), name="new"))
    assert other.is_too_noisy
    assert other.exit_code(is_strict=True) == 4
