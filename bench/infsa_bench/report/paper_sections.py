"""The sections of a page that set a run beside the paper."""

from __future__ import annotations

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.sides import ABSENT
from infsa_bench.analyze.table1 import Table1, tables_beside_paper
from infsa_bench.report.grid import Grid
from infsa_bench.report.sections import Section, grid_table
from infsa_bench.report.table1 import (
    claims_grid,
    describe_claims,
    describe_sides,
    exponents_grid,
    grids,
    missing,
)

NOT_TESTABLE = "not testable"
DETAILS = ("type", "parameters", "images/s", "J ratio", "kernels", "status")
"""How the heads of columns begin that are shown on request only."""


def paper_sections(run: Run) -> list[Section]:
    """Return a section for each implementation of a run that has any cell of Table 1."""
    return [_section(table) for table in tables_beside_paper(run)]


def _section(table: Table1) -> Section:
    claims, exponents = claims_grid(table), exponents_grid(table, is_short=True)
    is_tested = any(claim.verdict != NOT_TESTABLE for claim in table.claims)
    shown = [grid_table(claims, is_folded=not is_tested, details=DETAILS)]
    shown += [grid_table(exponents, is_folded=not is_tested, details=DETAILS)] if exponents.rows else []
    ours = table.ours
    return Section(
        title=f"Beside the paper: {ours.implementation}, {' and '.join(ours.precisions)}, {ours.execution}",
        paragraphs=tuple(describe_sides(table)),
        tables=(*shown, *(grid_table(grid, details=DETAILS) for grid in grids(table) if not _is_empty(grid))),
        remarks=(*describe_claims(), *missing(table)),
    )


def _is_empty(grid: Grid) -> bool:
    """Tell whether our side has no cell of a grid: nothing was asked of it, which is said once for all."""
    status = grid.columns.index("status")
    return all(row[status] == ABSENT for row in grid.rows)
