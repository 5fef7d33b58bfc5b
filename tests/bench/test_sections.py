from __future__ import annotations

import pytest

from infsa_bench.report.grid import Grid
from infsa_bench.report.sections import grid_table, sort_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12.3 ms", 0.0123),
        ("1.20 s", 1.2),
        ("183 .. 184 ms", 0.183),
        ("1.23 .. 1.24 s (1 process)", 1.23),
        ("0.860x (0.85 .. 0.87)", 0.86),
        ("57,650,152", 57_650_152),
        ("57.7 M", 57_700_000),
        ("~11.6 ± 0.2 J", 11.6),
        ("-0.26 .. 1.72", -0.26),
        ("", None),
        ("skipped", None),
        ("none (1 process)", None),
    ],
)
def test_what_formatted_numbers_are_sorted_by(text: str, value: float | None) -> None:
    assert sort_value(text) == (None if value is None else pytest.approx(value))


def test_intervals_sort_across_units() -> None:
    texts = ["1.23 .. 1.24 s", "183 .. 184 ms", "900 .. 910 us"]
    assert sorted(texts, key=lambda text: sort_value(text) or 0.0) == texts[::-1]


def test_a_grid_becomes_a_table() -> None:
    grid = Grid(
        title="t", columns=("mechanism", "x", "kernels"), rows=(("soft†", "1 s", "k"),), left=frozenset({"kernels"})
    )
    table = grid_table(grid, details=("kern",), filters={"mechanism": "", "phase": "infer"})
    assert [(column.title, column.is_number, column.is_detail) for column in table.columns] == [
        ("mechanism", True, False),
        ("x", True, False),
        ("kernels", False, True),
    ]
    (row,) = table.rows
    assert row.filters == {"mechanism": "soft", "phase": "infer"}
    assert [cell.value for cell in row.cells] == [None, 1.0, None]
