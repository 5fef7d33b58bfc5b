"""The table of a calibration, as Markdown and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence

from infsa_bench.analyze.calibration import CalibrationRow, Setup
from infsa_bench.report.grid import escape_markdown
from infsa_bench.report.units import significant

COLUMNS = (
    "rule",
    "noise",
    "unchanged cells flagged",
    "suites with a false alarm",
    "at most (95 %)",
    "finds 7 %",
    "finds 10 %",
    "measured again",
)


def render_calibration_markdown(setup: Setup, rows: Sequence[CalibrationRow]) -> str:
    """Return what was simulated, and a line for each rule and level of noise."""
    lines = ["# How often the gate is wrong", "", *describe_setup(setup), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(map(escape_markdown, calibration_cells(row))) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def describe_setup(setup: Setup) -> list[str]:
    """Return what was simulated, a line each."""
    return [
        f"{setup.suites} suites of {setup.cells} cells at each level of noise, seed {setup.seed}. *Noise* is the "
        "standard deviation between processes of the median cell; the cells' own are lognormal around it with a spread "
        f"of {setup.cell_spread:g}. A process times {setup.iterations} iterations that scatter by "
        f"{100 * setup.iteration_deviation:g} % and follow each other (AR(1), {setup.autocorrelation:g}).",
        "",
        f"Both of ours have {setup.screening} processes a side; suspects of the gate get {setup.confirming} fresh ones "
        "a side. *False alarm*: in a suite without any change some cell is called slower. *Finds*: one cell of the "
        "suite is slower by so much, and is called slower. *Measured again*: suspects a suite without any change.",
    ]


def calibration_cells(row: CalibrationRow) -> list[str]:
    """Return one line of the table."""
    rates = (row.flagged_cells, row.alarms, row.alarms_high, row.power_7, row.power_10)
    again = "" if row.suspects is None else significant(row.suspects)
    return [row.rule, f"{100 * row.deviation:g} %", *(f"{100 * rate:.1f} %" for rate in rates), again]


def render_calibration_csv(rows: Sequence[CalibrationRow]) -> str:
    """Return the same as CSV; rates are shares of 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(CalibrationRow)])
    writer.writerows([["" if value is None else value for value in dataclasses.astuple(row)] for row in rows])
    return text.getvalue()
