from __future__ import annotations

import dataclasses

import pytest
from table1_records import A100, measured, run_of, table1_records

from infsa_bench.analyze.sides import paper_side, sides_of
from infsa_bench.analyze.table1 import STRESS_CELLS, TABLE_CELLS, Row, Table1, table1, tables_beside_paper
from infsa_bench.machine import Environment
from infsa_bench.record import Record

PAPER = paper_side()


def beside_the_paper(records: list[Record], environment: Environment | None = None) -> Table1:
    run = run_of(records) if environment is None else run_of(records, environment)
    (side,) = sides_of(run)
    return table1(side, PAPER)


def the_row(table: Table1, mechanism: str, phase: str = "infer", config: str = "4L-64H") -> Row:
    (found,) = (row for row in table.rows if (row.mechanism, row.phase, row.config) == (mechanism, phase, config))
    return found


def test_the_cells_are_those_of_the_paper() -> None:
    assert len(TABLE_CELLS) == len(set(TABLE_CELLS)) == 36
    assert STRESS_CELLS == (
        ("4L-64H", "infsa-linear", "train", 4096),
        ("4L-64H", "infsa-linear", "infer", 9216),
        ("24L-16H", "infsa-linear", "infer", 9216),
    )
    assert all(key in PAPER.cells for key in (*TABLE_CELLS, *STRESS_CELLS))


def test_the_paper_against_itself_is_one_everywhere() -> None:
    table = table1(PAPER, PAPER)
    assert len(table.rows) == 36
    for row in (*table.rows, *table.stress_rows):
        assert row.latency_ratio is not None
        assert row.energy_ratio is not None
        assert (row.latency_ratio.value, row.throughput_ratio, row.energy_ratio.value) == (1, 1, 1)
        assert row.difference == ""
        assert row.ours.implied_watts == pytest.approx(200 if row.phase == "infer" else 300, rel=0.005)


def test_assumed_energy_is_compared_with_nothing_measured() -> None:
    row = the_row(beside_the_paper(table1_records()), "softmax")
    assert row.ours.joules_per_image is not None
    assert row.theirs.joules_per_image is not None
    assert row.energy_ratio is None
    assert row.latency_ratio is not None


def test_two_runs_compare_their_energies() -> None:
    (side,) = sides_of(run_of(table1_records()))
    row = the_row(table1(side, side), "softmax")
    assert row.energy_ratio is not None
    assert row.energy_ratio.value == 1
    assert (row.difference, row.throughput_ratio) == ("", 1)


def test_ratios_are_ours_over_theirs() -> None:
    row = the_row(beside_the_paper(table1_records()), "softmax")
    assert row.latency_ratio is not None
    assert row.latency_ratio.value == pytest.approx(0.050 / 0.05816)
    assert row.latency_ratio.low is not None
    assert row.latency_ratio.high is not None
    assert row.latency_ratio.low < 0.050 / 0.05816 < row.latency_ratio.high
    assert row.throughput_ratio == pytest.approx(20 / 17.19)


@pytest.mark.parametrize(
    ("environment", "precision", "difference"),
    [
        (A100, "amp-fp16", ""),
        (A100, "bf16", "other precision"),
        (None, "amp-fp16", "other hardware"),
        (None, "bf16", "other hardware and precision"),
        (dataclasses.replace(A100, device_name="NVIDIA A100-PCIE-40GB"), "amp-fp16", ""),
        (dataclasses.replace(A100, device_name="NVIDIA A100-SXM4-80GB"), "amp-fp16", "other hardware"),
    ],
)
def test_absolute_numbers_compare_on_the_same_gpu_only(
    environment: Environment | None, precision: str, difference: str
) -> None:
    table = beside_the_paper([measured(0.05, resolution=1024, precision=precision)], environment)
    assert the_row(table, "softmax").difference == difference
    assert the_row(table, "mlla").difference == ""  # nothing to compare


def test_two_runs_differ_in_more_than_hardware() -> None:
    (fast,) = sides_of(run_of([measured(0.05, resolution=1024, implementation="fast")]))
    (reference,) = sides_of(run_of([measured(0.05, resolution=1024, execution="compile")]))
    smaller = dataclasses.replace(fast, emulated_memory_bytes=2**30)
    assert the_row(table1(fast, fast), "softmax").difference == ""
    assert the_row(table1(fast, reference), "softmax").difference == "other implementation and execution"
    assert the_row(table1(fast, smaller), "softmax").difference == "other memory limit"


def test_only_a_run_with_some_cell_of_it_has_a_table() -> None:
    stress = measured(5.0, mechanism="infsa-linear", resolution=9216)
    assert len(tables_beside_paper(run_of([stress]))) == 1
    assert tables_beside_paper(run_of([measured(0.1, resolution=224)])) == []
    assert tables_beside_paper(run_of([measured(0.1, resolution=1024, batch_size=2)])) == []


def test_linear_mechanisms_that_are_close_are_marked() -> None:
    """At 10 ms times their place: 4 and 5 are 1.25 apart, 2 and 3 exactly 1.5; quadratic ones are never meant."""
    table = beside_the_paper(table1_records())
    close = [row.mechanism for row in table.rows if row.is_close and (row.config, row.phase) == ("4L-64H", "infer")]
    assert close == ["performer", "soft", "flatten", "agent", "mlla", "infsa-linear"]
    assert not the_row(table, "softmax").is_close
    assert not the_row(table, "linformer").is_close


def test_the_stress_test_has_its_own_rows() -> None:
    table = beside_the_paper(table1_records())
    assert [(row.config, row.phase, row.resolution, row.ours.status) for row in table.stress_rows] == [
        ("4L-64H", "train", 4096, "absent"),
        ("4L-64H", "infer", 9216, "ok"),
        ("24L-16H", "infer", 9216, "absent"),
    ]
