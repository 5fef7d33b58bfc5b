"""The sections of a page that set a run beside the paper."""

from __future__ import annotations

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.sides import ABSENT
from infsa_bench.analyze.table1 import Table1, tables_beside_paper
from infsa_bench.report.claims import claims_grid, describe_claims, exponents_grid
from infsa_bench.report.grid import Grid
from infsa_bench.report.sections import Section, grid_table
from infsa_bench.report.table1 import describe_sides, grids, missing

FILTERS = ("mechanism", "config", "phase")
MECHANISM = ""
"""What the column of that name says of each row."""

STRESS = "stress test"
NOT_TESTABLE = "not testable"
DETAILS = ("type", "parameters", "images/s", "J ratio", "kernels", "status")
"""How the heads of columns begin that are shown on request only."""


def paper_sections(run: Run) -> list[Section]:
    """Return two sections for each implementation of a run that has any cell of Table 1, ``fast`` first."""
    tables = sorted(tables_beside_paper(run), key=lambda table: table.ours.implementation != "fast")
    return [section for table in tables for section in (_claims(table), _numbers(table))]


def _words(table: Table1) -> str:
    ours = table.ours
    return f"{ours.implementation}, {' and '.join(ours.precisions)}, {ours.execution}"


def _claims(table: Table1) -> Section:
    claims, exponents = claims_grid(table), exponents_grid(table, is_short=True)
    is_tested = any(claim.verdict != NOT_TESTABLE for claim in table.claims)
    shown = [claims, *([exponents] if exponents.rows else [])]
    return Section(
        title=f"What of the paper reproduces: {_words(table)}",
        paragraphs=() if is_tested else ("Nothing of it can be tested with the cells of this run.",),
        tables=tuple(grid_table(grid, is_folded=not is_tested) for grid in shown),
        remarks=tuple(describe_claims()),
    )


def _numbers(table: Table1) -> Section:
    grid_of = [(grid, dict(zip(FILTERS, (MECHANISM, *words), strict=True))) for grid, words in _shown_grids(table)]
    return Section(
        title=f"Beside the paper: {_words(table)}",
        paragraphs=tuple(describe_sides(table)),
        filters=FILTERS,
        tables=tuple(grid_table(grid, details=DETAILS, filters=filters) for grid, filters in grid_of),
        remarks=tuple(missing(table)),
    )


def _shown_grids(table: Table1) -> list[tuple[Grid, tuple[str, str]]]:
    """Return the grids that our side has any cell of, with model and phase as far as all their rows share them."""
    found = []
    for grid in grids(table):
        config, phase, *_ = grid.title.split(", ")
        is_stress = "phase" in grid.columns
        found.append((grid, (STRESS, STRESS) if is_stress else (config, phase)))
    return [(grid, words) for grid, words in found if not _is_empty(grid)]


def _is_empty(grid: Grid) -> bool:
    """Tell whether our side has no cell of a grid: nothing was asked of it, which is said once for all."""
    status = grid.columns.index("status")
    return all(row[status] == ABSENT for row in grid.rows)
