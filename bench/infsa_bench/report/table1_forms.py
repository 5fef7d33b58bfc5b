"""Table 1 as Markdown, LaTeX, CSV, JSON and on a terminal: one block for each implementation of a run."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from infsa_bench.analyze.scaling import claimed_exponent
from infsa_bench.analyze.sides import Estimate, Side, SideCell
from infsa_bench.analyze.table1 import Row, Table1
from infsa_bench.quoting import one_line
from infsa_bench.report.claims import claim_lines, claims_grid, describe_claims, exponents_grid
from infsa_bench.report.grid import LATEX_NEEDS, Grid, escape_markdown, grid_latex, grid_markdown, grid_terminal
from infsa_bench.report.table1 import block_title, describe_sides, footnotes, grids, missing

WIDE_TERMINAL = 240
"""Columns of a terminal that hold every column of the table."""

NUMBERS = re.compile(r"(seconds|per_image|per_second|watts|ratio)(_low|_high)?$")
WHOLE_NUMBERS = ("device_memory_bytes", "processes", "parameters", "max_resolution")


def table1_markdown(tables: Sequence[Table1]) -> str:
    """Return every block with its claims, and what must be known of both."""
    lines = ["# Table 1", ""]
    for table in tables:
        lines += [f"## {escape_markdown(block_title(table))}", ""]
        lines += [f"- {escape_markdown(line)}" for line in describe_sides(table)]
        for grid in grids(table):
            lines += ["", f"### {escape_markdown(grid.title)}", "", *grid_markdown(grid)]
        for grid in (claims_grid(table), exponents_grid(table)):
            lines += ["", f"### {grid.title}", "", *grid_markdown(grid)]
        lines.append("")
        lines += [f"- {escape_markdown(line)}" for line in describe_claims()]
        heading, notes = footnotes(table.ours)
        for title, remarks in (
            ("Cells without a number", missing(table)),
            (heading, [f"{name}: {note}" for name, note in notes]),
        ):
            if remarks:
                lines += ["", f"### {title}", "", *(f"- {escape_markdown(remark)}" for remark in remarks)]
        lines.append("")
    return "\n".join(lines)


def table1_latex(tables: Sequence[Table1]) -> str:
    """Return tables for a document that loads what :data:`LATEX_NEEDS` says; what must be known stands in comments."""
    lines = [LATEX_NEEDS]
    for number, table in enumerate(tables, start=1):
        # A comment ends with its line, and one_line leaves no other end in it.
        lines += ["", f"% {one_line(block_title(table))}"]
        lines += [f"% {one_line(line)}" for line in describe_sides(table, is_short=True)]
        for index, grid in enumerate(grids(table, is_short=True), start=1):
            grid = dataclasses.replace(grid, title=f"{grid.title} ({block_title(table)})")
            lines += ["", *grid_latex(grid, f"tab:infsa-{number}-{index}")]
        lines += ["", *grid_latex(claims_grid(table), f"tab:infsa-{number}-claims", wide=_wide(claims_grid(table)))]
        exponents = exponents_grid(table)
        lines += ["", *grid_latex(exponents, f"tab:infsa-{number}-exponents", wide=exponents.columns[-1:])]
    return "\n".join(lines) + "\n"


def _wide(claims: Grid) -> list[str]:
    """The columns of claims that hold sentences, and lists of mechanisms."""
    return [column for column in claims.columns if column not in ("model", "verdict")]


def print_table1(tables: Sequence[Table1], console: Console) -> None:
    """Print the blocks, in the columns that fit a terminal: all of them on a very wide one."""
    is_short = console.width < WIDE_TERMINAL
    for table in tables:
        console.print(block_title(table), markup=False, highlight=False, style="bold")
        for line in describe_sides(table, is_short=is_short):
            console.print(line, markup=False, highlight=False)
        for grid in grids(table, is_short=is_short):
            console.print()
            console.print(grid_terminal(grid))
        console.print()
        exponents = exponents_grid(table, is_short=True)
        if exponents.rows:
            console.print(grid_terminal(exponents))
        else:
            console.print("No exponent: none of the nine was inferred at three sizes or more")
        console.print()
        console.print("Claims", style="bold")
        for line in (*claim_lines(table), *describe_claims()):
            console.print(line, markup=False, highlight=False)
        lacking = missing(table)
        if lacking:
            console.print()
            console.print("Cells without a number", style="bold")
        for line in lacking:
            console.print(line, markup=False, highlight=False)
        console.print()


def table1_csv(tables: Sequence[Table1]) -> str:
    """Return one line a cell and block, SI units in the names of the columns; no number is empty, never zero."""
    return table1_frame(tables).to_csv(index=False)


def table1_frame(tables: Sequence[Table1]) -> pd.DataFrame:
    """Return the same as a table of pandas, whole numbers with the dtype ``Int64``."""
    frame = pd.DataFrame([_flat(table, row) for table in tables for row in (*table.rows, *table.stress_rows)])
    for prefix in ("ours", "theirs"):
        for name in WHOLE_NUMBERS:
            frame[f"{prefix}_{name}"] = pd.array(list(frame[f"{prefix}_{name}"]), dtype="Int64")
    for name in frame.columns:
        if NUMBERS.search(name):
            frame[name] = frame[name].astype("float64")
    return frame


def table1_json(tables: Sequence[Table1]) -> str:
    """Return every block with its claims as JSON."""
    blocks = [
        {
            "ours": _described(table.ours),
            "theirs": _described(table.theirs),
            "rows": [_flat(table, row) for row in (*table.rows, *table.stress_rows)],
            "claims": [dataclasses.asdict(claim) for claim in table.claims],
        }
        for table in tables
    ]
    return json.dumps({"tables": blocks}, indent=1, allow_nan=False) + "\n"


def _described(side: Side) -> dict[str, Any]:
    names = ("title", "device", "implementation", "execution", "precisions", "emulated_memory_bytes")
    return {name: getattr(side, name) for name in names}


def _flat(table: Table1, row: Row) -> dict[str, Any]:
    """Return the fields of a row, and of its side cells under their prefix."""
    model = (row.config, row.mechanism)
    flat: dict[str, Any] = {
        "config": row.config,
        "mechanism": row.mechanism,
        "phase": row.phase,
        "resolution": row.resolution,
        "claimed_exponent": claimed_exponent(row.mechanism),
    }
    for prefix, side, cell in (("ours", table.ours, row.ours), ("theirs", table.theirs, row.theirs)):
        fields = {
            "title": side.title,
            "device": side.device,
            "implementation": side.implementation,
            "execution": side.execution,
            "parameters": side.parameters.get(model),
            "max_resolution": side.reach[model].resolution if model in side.reach else None,
            **_flat_cell(cell),
        }
        flat |= {f"{prefix}_{name}": one_line(text) if isinstance(text, str) else text for name, text in fields.items()}
    flat |= _flat_estimate("latency_ratio", row.latency_ratio) | {"throughput_ratio": row.throughput_ratio}
    flat |= _flat_estimate("joules_per_image_ratio", row.energy_ratio)
    return flat | {"difference": row.difference, "is_close": row.is_close}


def _flat_cell(cell: SideCell) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(SideCell):
        value = getattr(cell, field.name)
        if field.name in ("latency_seconds", "joules_per_image"):
            flat |= _flat_estimate(field.name, value)
        else:
            flat[field.name] = " ".join(value) if field.name == "flags" else value
    return flat | {"implied_watts": cell.implied_watts}


def _flat_estimate(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    ends = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
