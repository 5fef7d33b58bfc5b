"""The two stages: who is suspected, and who is convicted."""

from __future__ import annotations

import dataclasses

import pytest
from sample_records import make_failure, make_record
from sample_sides import cell_records, failed_records, make_side, noisy

from infsa_bench.analyze.compare import compare
from infsa_bench.analyze.gate import Suspect, decide, measurable, restricted, suspects
from infsa_bench.analyze.noise import noise_of
from infsa_bench.analyze.verdict import Judged

CELL = "infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager"
STEADY = (1.000, 1.001, 0.999, 1.0005, 0.9995)


def scaled(factor: float) -> list[float]:
    return [factor * value for value in STEADY]


def verdicts(judged: tuple[Judged, ...], cell: str = CELL) -> dict[str, str]:
    return {item.metric: item.verdict for item in judged if item.cell == cell}


def test_unchanged_cells_are_not_suspected() -> None:
    assert suspects(make_side(noisy(seed=1)), make_side(noisy(seed=2))) == ()


def test_slower_cells_are_suspected_in_each_metric() -> None:
    found = suspects(make_side(noisy(seed=1)), make_side(noisy(seed=2, slower=1.1)))
    assert {suspect.metric for suspect in found} == {"latency", "throughput"}
    assert {suspect.cell.split("/")[1] for suspect in found} == {"softmax.reference"}
    assert len(found) == 6


def test_faster_cells_are_not() -> None:
    assert suspects(make_side(noisy(seed=1)), make_side(noisy(seed=2, slower=0.8))) == ()


def test_suspects_are_convicted_by_fresh_values_alone() -> None:
    base, slower = make_side(cell_records(STEADY)), make_side(cell_records(scaled(1.1)))
    suspected = suspects(base, slower)
    assert Suspect(cell=CELL, metric="latency") in suspected
    convicted = decide(base, slower, suspected, base, slower)
    assert verdicts(convicted.judged)["latency"] == "REGRESSED"
    assert convicted.exit_code(is_strict=False) == 1
    acquitted = decide(base, slower, suspected, base, make_side(cell_records(scaled(1.001))))
    assert verdicts(acquitted.judged)["latency"] == "SAME"
    assert acquitted.exit_code(is_strict=True) == 0
    item = next(item for item in convicted.judged if item.metric == "latency")
    assert "measured again" in item.tags
    assert item.ratio == pytest.approx(1.1)
    assert item.low is not None
    assert item.low <= item.ratio <= (item.high or 0)


def test_suspects_that_are_not_confirmed_are_ambiguous() -> None:
    base, slower = make_side(cell_records(STEADY)), make_side(cell_records(scaled(1.1)))
    noise = [1.0, 1.2, 0.9, 1.1, 1.05]
    found = decide(base, slower, suspects(base, slower), base, make_side(cell_records(noise)))
    item = next(item for item in found.judged if item.metric == "latency")
    assert (item.verdict, item.reason) == ("AMBIGUOUS", "suspected, and not confirmed by fresh processes")


def test_no_single_stage_convicts() -> None:
    base, slower = make_side(cell_records(STEADY)), make_side(cell_records(scaled(1.1)))
    assert verdicts(compare(base, slower).judged)["latency"] == "REGRESSED"
    found = decide(base, slower, (), None, None)
    assert verdicts(found.judged)["latency"] == "AMBIGUOUS"


def test_stored_values_of_the_base_need_more_to_convict() -> None:
    """Between the two levels: fresh values of both sides convict, stored ones of the base do not."""
    base, slower = make_side(cell_records(STEADY)), make_side(cell_records(scaled(1.1)))
    suspected = tuple(suspect for suspect in suspects(base, slower) if suspect.metric == "latency")
    again = make_side(cell_records([1.07, 1.03, 1.06, 1.09, 1.03]))
    both, stored = (decide(base, slower, suspected, base, again, is_base_stored=one) for one in (False, True))
    adjusted = next(item.q_value for item in both.judged if item.metric == "latency")
    assert adjusted is not None
    assert 0.02 < adjusted < 0.05
    assert verdicts(both.judged)["latency"] == "REGRESSED"
    assert verdicts(stored.judged)["latency"] == "AMBIGUOUS"


def test_what_a_gate_finds_is_more_than_one_comparison_does() -> None:
    """At a noise of 2 % a comparison of five processes misses 7 % more often than not, both stages find it."""
    base, new = make_side(noisy(deviation=0.02, seed=1)), make_side(noisy(deviation=0.02, seed=2))
    assert compare(base, new).detectable["latency"] > 0.07
    found = decide(base, new, suspects(base, new), base, new)
    assert 0.05 < found.detectable["latency"] < 0.075


def test_memory_is_confirmed_without_a_test() -> None:
    def side(peak: int, count: int) -> object:
        changes = {"memory_source": "cuda_allocator", "peak_memory_bytes": peak * 2**20}
        return make_side(cell_records([1.0] * count, changes=changes))

    base, larger = side(1000, 5), side(1100, 5)
    suspected = suspects(base, larger)  # type: ignore[arg-type]
    assert suspected == (Suspect(cell=CELL, metric="peak_memory"),)
    convicted = decide(base, larger, suspected, side(1000, 10), side(1100, 10))  # type: ignore[arg-type]
    assert verdicts(convicted.judged)["peak_memory"] == "REGRESSED"
    acquitted = decide(base, larger, suspected, side(1000, 10), side(1000, 10))  # type: ignore[arg-type]
    assert verdicts(acquitted.judged)["peak_memory"] == "SAME"


def test_a_failure_needs_no_second_look() -> None:
    base, failed = make_side(cell_records(STEADY)), make_side(failed_records("oom"))
    assert suspects(base, failed) == ()
    assert decide(base, failed, (), None, None).exit_code(is_strict=False) == 1


def test_a_failure_that_shows_only_the_second_time_counts() -> None:
    base, slower = make_side(cell_records(STEADY)), make_side(cell_records(scaled(1.1)))
    again = [*cell_records(STEADY[:4]), make_record(make_failure("oom"), replicate=4)]
    found = decide(base, slower, suspects(base, slower), base, make_side(again))
    assert verdicts(found.judged)["status"] == "STATUS_CHANGED"
    assert found.exit_code(is_strict=False) == 1
    vanished = decide(base, slower, suspects(base, slower), base, make_side(failed_records("crash")))
    assert vanished.exit_code(is_strict=False) == 1


def test_holm_is_over_all_suspects() -> None:
    base, slower = make_side(noisy(seed=1)), make_side(noisy(seed=2, slower=1.1))
    suspected = suspects(base, slower)
    found = decide(base, slower, suspected, make_side(noisy(10, seed=3)), make_side(noisy(10, seed=4, slower=1.1)))
    convicted = [item for item in found.judged if item.verdict == "REGRESSED"]
    assert {(item.cell, item.metric) for item in convicted} == {(item.cell, item.metric) for item in suspected}
    assert all(item.q_value >= (item.p_value or 0) for item in convicted if item.q_value is not None)


def test_few_replicates_are_screened_by_the_noise_of_the_machine() -> None:
    base, slower = make_side(cell_records([1.0])), make_side(cell_records(scaled(1.1)))
    assert suspects(base, slower) == ()
    noise = noise_of(make_side(noisy(10)), "2026-01-02T03:04:05+00:00")
    found = suspects(base, slower, noise)
    assert {suspect.metric for suspect in found} == {"latency", "throughput"}
    assert suspects(slower, base, noise) == ()


def test_what_a_baseline_left_out_is_not_measured() -> None:
    side = make_side(
        [*cell_records(STEADY), *failed_records("skipped", mechanism="soft"), *failed_records("oom", mechanism="mlla")]
    )
    assert [cell.case.mechanism for cell in measurable(side).cells] == ["mlla", "softmax"]
    assert [cell.name for cell in restricted(side, [CELL]).cells] == [CELL]


def test_cells_that_one_side_lacks_are_not_suspected_but_gone() -> None:
    both = [*cell_records(STEADY), *cell_records(STEADY, mechanism="mlla")]
    base, new = make_side(both), make_side(cell_records(scaled(1.1)))
    assert {suspect.cell for suspect in suspects(base, new)} == {CELL}
    assert dataclasses.replace(base, cells=()) == restricted(base, [])
