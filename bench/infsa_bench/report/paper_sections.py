"""The sections of a page that set a run beside the paper."""

from __future__ import annotations

import re

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.sides import ABSENT
from infsa_bench.analyze.table1 import Table1, tables_beside_paper
from infsa_bench.report.grid import Grid
from infsa_bench.report.sections import Cell, Column, Row, Section, Table
from infsa_bench.report.table1 import (
    claims_grid,
    describe_claims,
    describe_sides,
    exponents_grid,
    grids,
    missing,
)

NOT_TESTABLE = "not testable"
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "M": 1e6}
DETAILS = ("type", "parameters", "images/s", "J ratio", "kernels", "status")
"""How the heads of columns begin that are shown on request only."""


def paper_sections(run: Run) -> list[Section]:
    """Return a section for each implementation of a run that has any cell of Table 1."""
    return [_section(table) for table in tables_beside_paper(run)]


def _section(table: Table1) -> Section:
    claims, exponents = claims_grid(table), exponents_grid(table, is_short=True)
    is_tested = any(claim.verdict != NOT_TESTABLE for claim in table.claims)
    shown = [_table(claims, is_folded=not is_tested)]
    shown += [_table(exponents, is_folded=not is_tested)] if exponents.rows else []
    ours = table.ours
    return Section(
        title=f"Beside the paper: {ours.implementation}, {' and '.join(ours.precisions)}, {ours.execution}",
        paragraphs=tuple(describe_sides(table)),
        tables=(*shown, *(_table(grid) for grid in grids(table) if not _is_empty(grid))),
        remarks=(*describe_claims(), *missing(table)),
    )


def _is_empty(grid: Grid) -> bool:
    """Tell whether our side has no cell of a grid: nothing was asked of it, which is said once for all."""
    status = grid.columns.index("status")
    return all(row[status] == ABSENT for row in grid.rows)


def _table(grid: Grid, *, is_folded: bool = False) -> Table:
    columns = tuple(
        Column(title=title, is_number=title not in grid.left, is_detail=title.startswith(DETAILS))
        for title in grid.columns
    )
    rows = tuple(Row(cells=tuple(Cell(text=text, value=sort_value(text)) for text in row)) for row in grid.rows)
    return Table(caption=grid.title, columns=columns, rows=rows, is_folded=is_folded)


def sort_value(text: str) -> float | None:
    """Return what a formatted number is sorted by: 12.3 ms before 1.20 s; None for what begins with no number."""
    found = re.match(r"~?(-?[0-9][0-9,]*(?:\.[0-9]+)?)x? ?([A-Za-z]*)", text)
    if found is None:
        return None
    return float(found[1].replace(",", "")) * UNITS.get(found[2], 1.0)
