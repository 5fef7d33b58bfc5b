from __future__ import annotations

from pathlib import Path
from typing import Any

from sample_records import make_failure, make_measurement, make_record
from sample_runs import GPU_ENVIRONMENT, run_of, times

from infsa_bench.analyze.run import Run
from infsa_bench.record import Record
from infsa_bench.report.sections import Section
from infsa_bench.report.side_by_side import comparison_sections


def measured(seconds: float, **axes: Any) -> Record:
    return make_record(make_measurement(times(seconds)), **axes)


def compared(*runs: Run) -> dict[str, Section]:
    return {section.title: section for section in comparison_sections(runs)}


def joined(*runs: Run) -> tuple[list[str], list[list[str]]]:
    (table,) = compared(*runs)["Side by side"].tables
    return [column.title for column in table.columns], [[cell.text for cell in row.cells] for row in table.rows]


FIRST = run_of([measured(1 / 8), make_record(make_failure("oom"), resolution=512), measured(1 / 8, resolution=1024)])
SECOND = run_of([measured(1 / 16), measured(1 / 4, resolution=512)], Path("results/second"))


def test_rows_are_joined_by_cell_and_say_what_is_missing() -> None:
    titles, rows = joined(FIRST, SECOND)
    assert titles[3:8] == ["A latency", "A 95 % interval", "B latency", "B 95 % interval", "B / A"]
    assert [row[2:8] for row in rows] == [
        ["224", "125 ms", "124 .. 126 ms", "62.5 ms", "61.8 .. 63.2 ms", "0.500 (0.488 .. 0.512)"],
        ["512", "oom", "", "250 ms", "247 .. 253 ms", "no number in A"],
        ["1024", "125 ms", "124 .. 126 ms", "not in this run", "", ""],
    ]


def test_the_headline_is_the_median_ratio_and_its_spread() -> None:
    other = run_of([measured(1 / 16), measured(1 / 4, resolution=1024)], Path("results/other"))
    (finding,) = compared(FIRST, other)["Headline"].findings
    assert finding.subject == "B: other against A: example"
    assert (finding.figure, finding.figure_range) == ("1.25x", "0.500 .. 2.00 from cell to cell")
    assert finding.figure_meaning == "the latency of A: median over the 2 cells that have a number in both"


def test_runs_without_a_common_number_are_not_compared() -> None:
    (finding,) = compared(FIRST, run_of([measured(1, resolution=512)]))["Headline"].findings
    assert finding.figure == ""
    assert finding.sentences == (
        "No cell has a number in both.",
        "1 cell has a number in B only, not in A.",
        "2 cells have a number in A only, not in B.",
    )


def test_three_runs_are_all_set_against_the_first() -> None:
    titles, rows = joined(FIRST, SECOND, SECOND)
    assert [title for title in titles if title.endswith("/ A")] == ["B / A", "C / A"]
    assert all(len(row) == len(titles) for row in rows)
    assert len(compared(FIRST, SECOND, SECOND)["Headline"].findings) == 2


def test_differences_of_environment_are_listed_and_nothing_else() -> None:
    (table,) = compared(FIRST, run_of([measured(1)], environment=GPU_ENVIRONMENT))["Differences of environment"].tables
    rows = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in table.rows}
    assert rows["device name"] == ["Xeon 8481C", "NVIDIA H200"]
    assert rows["GPU: power limit"] == ["", "700 W"]
    assert "torch version" not in rows
    same = compared(FIRST, SECOND)["Differences of environment"]
    assert same.paragraphs == ("Machine, versions and settings are the same.",)


def test_axes_that_all_rows_share_stand_above_them() -> None:
    (table,) = compared(FIRST, SECOND)["Side by side"].tables
    assert table.caption == "Each cell in all runs, 4L-64H, infer, fp32, eager, batch 1"
    mixed = run_of([measured(1), measured(1, precision="bf16")])
    titles, _ = joined(mixed, SECOND)
    assert titles[3] == "precision"
