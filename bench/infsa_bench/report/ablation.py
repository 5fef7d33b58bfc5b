"""The latency row of the ablation as grids of text, and in the forms of Table 1."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import pandas as pd

from infsa_bench.analyze.ablation import AblationCell, AblationRow, spreads
from infsa_bench.paper import ABLATION_BATCH_SIZE, ABLATION_CONFIG, ABLATION_RESOLUTION
from infsa_bench.report.grid import LATEX_NEEDS, Grid, escape_markdown, grid_latex, grid_markdown
from infsa_bench.report.units import format_interval_seconds, format_seconds, significant

COLUMNS = (
    "parameter",
    "value",
    "training",
    "95 % interval (training)",
    "paper (training)",
    "inference",
    "95 % interval (inference)",
    "paper (inference)",
)
LEFT = frozenset({"parameter", "value"})


def ablation_grids(rows: Sequence[AblationRow]) -> list[Grid]:
    """Return one grid for each implementation, precision, execution and machine."""
    return [
        Grid(
            title=f"Ablation of infsa-linear ({conditions}), {ABLATION_CONFIG}, {ABLATION_RESOLUTION} x "
            f"{ABLATION_RESOLUTION}, {ABLATION_BATCH_SIZE} images a batch: latency",
            columns=COLUMNS,
            rows=tuple((row.parameter, row.value, *_texts(row.train), *_texts(row.infer)) for row in group),
            left=LEFT,
        )
        for conditions, group in _groups(rows)
    ]


def describe_ablation(rows: Sequence[AblationRow]) -> list[str]:
    """Return what a reader must know of it: how much the values differ, and what stands for what."""
    lines = []
    for conditions, group in _groups(rows):
        for phase, word in (("train", "training"), ("infer", "inference")):
            ours, theirs = spreads(group, phase)
            text = "not measured" if ours is None else f"{significant(ours)}x"
            lines.append(f"{conditions}, {word}: slowest over fastest value {text}, paper {significant(theirs)}x")
    lines.append("The paper does not name its second alternative to relu: silu stands in its place")
    lines.append("Where rho or the activation is not varied, it is the default: 0.95 and relu; fast has relu only")
    return lines


def ablation_markdown(rows: Sequence[AblationRow]) -> str:
    """Return the grids as Markdown, with what must be known."""
    lines = ["# Ablation of Linear-InfSA", ""]
    lines += [f"- {escape_markdown(line)}" for line in describe_ablation(rows)]
    for grid in ablation_grids(rows):
        lines += ["", f"## {escape_markdown(grid.title)}", "", *grid_markdown(grid)]
    return "\n".join(lines) + "\n"


def ablation_latex(rows: Sequence[AblationRow]) -> str:
    """Return the grids as tables for a document."""
    lines = [LATEX_NEEDS, *(f"% {x}" for x in describe_ablation(rows))]
    for index, grid in enumerate(ablation_grids(rows), start=1):
        lines += ["", *grid_latex(grid, f"tab:infsa-ablation-{index}")]
    return "\n".join(lines) + "\n"


def ablation_csv(rows: Sequence[AblationRow]) -> str:
    """Return one line a value and phase."""
    lines = [
        {
            "conditions": row.conditions,
            "parameter": row.parameter,
            "value": row.value,
            "phase": phase,
            "status": cell.status,
            "latency_seconds": None if cell.latency_seconds is None else cell.latency_seconds.value,
            "latency_seconds_low": None if cell.latency_seconds is None else cell.latency_seconds.low,
            "latency_seconds_high": None if cell.latency_seconds is None else cell.latency_seconds.high,
            "paper_latency_seconds": cell.theirs_seconds,
        }
        for row in rows
        for phase, cell in (("train", row.train), ("infer", row.infer))
    ]
    return pd.DataFrame(lines).to_csv(index=False)


def ablation_json(rows: Sequence[AblationRow]) -> str:
    """Return the same as JSON."""
    return json.dumps({"ablation": [dataclasses.asdict(row) for row in rows]}, indent=1, allow_nan=False) + "\n"


def _groups(rows: Sequence[AblationRow]) -> list[tuple[str, list[AblationRow]]]:
    names = dict.fromkeys(row.conditions for row in rows)
    return [(name, [row for row in rows if row.conditions == name]) for name in names]


def _texts(cell: AblationCell) -> tuple[str, str, str]:
    theirs, latency = format_seconds(cell.theirs_seconds), cell.latency_seconds
    if latency is None:
        return cell.status, "", theirs
    interval = "none"
    if latency.low is not None and latency.high is not None:
        interval = format_interval_seconds(latency.low, latency.high)
    return format_seconds(latency.value), interval, theirs
