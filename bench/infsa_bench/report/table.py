"""Summary rows as Markdown, CSV and a terminal table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from infsa_bench.analyze.frame import to_frame
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.quoting import one_line
from infsa_bench.report.describe import describe_run, energy_remarks
from infsa_bench.report.footnotes import departures, tools
from infsa_bench.report.grid import escape_markdown, grid_markdown
from infsa_bench.report.scaling import describe_scaling, scaling_grid
from infsa_bench.report.units import (
    format_bytes,
    format_flops_per_second,
    format_interval_seconds,
    format_joules,
    format_percent,
    format_seconds,
    significant,
)
from infsa_bench.store import StoredRun

COLUMNS = (
    "mechanism",
    "implementation",
    "resolution",
    "tokens",
    "latency",
    "95 % interval",
    "vs reference",
    "processes",
    "images/s",
    "FLOP/s",
    "roofline",
    "J/image",
    "W",
    "peak memory",
    "parameters at 224",
    "parameters",
    "status",
)
TERMINAL_COLUMNS = {
    "mechanism": "mechanism",
    "implementation": "impl",
    "resolution": "side",
    "latency": "latency",
    "vs reference": "vs ref.",
    "95 % interval": "95 % interval",
    "images/s": "images/s",
    "J/image": "J/image",
    "peak memory": "memory",
    "status": "status",
}
RIGHT_ALIGNED = frozenset(COLUMNS) - {"mechanism", "implementation", "status"}
MIN_SAMPLES = 6
"""Fewer samples than these have no 95 % interval of their median, however independent they are."""

OPTIONAL_COLUMNS = {
    "vs reference": "speedup_over_reference",
    "FLOP/s": "achieved_flops_per_second",
    "roofline": "roofline_fraction",
}
"""Left out of a report in which no row has the field."""


def render_markdown(run: StoredRun, rows: Sequence[SummaryRow]) -> str:
    """Return the whole report of a run as Markdown: where it ran, a table a block, departures as footnotes."""
    lines = [f"# {escape_markdown(run.name)}", ""]
    lines += [f"- {escape_markdown(line)}" for line in describe_run(run, rows)]
    columns = shown_columns(rows)
    for title, block in blocks(rows):
        lines += ["", f"## {escape_markdown(title)}", ""]
        lines.append("| " + " | ".join(columns) + " |")
        lines.append("|" + "|".join("---:" if column in RIGHT_ALIGNED else "---" for column in columns) + "|")
        for row in block:
            cells = row_cells(row)
            lines.append("| " + " | ".join(escape_markdown(cells[column]) for column in columns) + " |")
    growth = scaling_grid(rows)
    if growth.rows:
        lines += ["", f"## {growth.title}", "", *grid_markdown(growth), ""]
        lines += [f"- {escape_markdown(line)}" for line in describe_scaling()]
    for heading, remarks in (
        ("Cells without a number", _reasons(rows)),
        ("Energy that is not measured, or of low confidence", energy_remarks(rows)),
    ):
        if remarks:
            lines += ["", f"## {heading}", ""]
            lines += [f"- {escape_markdown(remark)}" for remark in remarks]
    names = list(dict.fromkeys(row.case.mechanism for row in rows))
    footnotes = [("How `reference` departs from the published code", departures(names))]
    if any(row.case.implementation == "fast" for row in rows):
        footnotes.append(("How `fast` computes the same", tools(names)))
    for heading, notes in footnotes:
        lines += ["", f"## {heading}", ""]
        lines += [f"- {escape_markdown(name)}: {escape_markdown(note)}" for name, note in notes]
    return "\n".join(lines) + "\n"


def shown_columns(rows: Sequence[SummaryRow]) -> list[str]:
    """Return the columns of a report of these rows: without the optional ones that no row has."""
    absent = {column for column, field in OPTIONAL_COLUMNS.items() if all(getattr(row, field) is None for row in rows)}
    return [column for column in COLUMNS if column not in absent]


def render_csv(rows: Sequence[SummaryRow]) -> str:
    """Return one line a cell, SI units in the column names; what there is no number for is empty, never zero."""
    return to_frame(rows).to_csv(index=False)


def render_terminal(title: str, rows: Sequence[SummaryRow]) -> Table:
    """Return one block as a table that fits a terminal of 80 columns: what is compared, not all that is known.

    Energy and the ratio to ``reference`` have no column where no row has any; where they have one, the interval gives
    way, and to both of them the throughput.
    """
    # Text, not str: names come from files, and rich would read brackets in them as markup.
    table = Table(title=Text(one_line(title)), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    left_out = set()
    if len({row.case.implementation for row in rows}) < 2:
        left_out.add("implementation")
    if all(row.joules_per_image is None for row in rows):
        left_out.add("J/image")
    if all(row.speedup_over_reference is None for row in rows):
        left_out.add("vs reference")
    # What gives way first where there is more to show than 80 columns hold.
    has_ratio, has_energy = "vs reference" not in left_out, "J/image" not in left_out
    if has_ratio or (has_energy and "implementation" not in left_out):
        left_out.add("95 % interval")
    if has_ratio and has_energy:
        left_out.add("images/s")
    columns = [column for column in TERMINAL_COLUMNS if column not in left_out]
    for column in columns:
        justify: JustifyMethod = "right" if column in RIGHT_ALIGNED else "left"
        table.add_column(TERMINAL_COLUMNS[column], justify=justify, overflow="fold")
    for row in rows:
        cells = row_cells(row)
        # Flags, reasons and uncertainties would not fit; they stand below the table and in the report.
        cells["status"] = row.status + ("*" if row.flags else "")
        cells["J/image"] = _energy(row, short=True)
        cells["95 % interval"] = _interval(row, short=True)
        cells["implementation"] = _implementation(row, short=True)
        table.add_row(*(Text(one_line(cells[column])) for column in columns))
    return table


def blocks(rows: Sequence[SummaryRow]) -> list[tuple[str, list[SummaryRow]]]:
    """Group rows that may stand in one table: one config, phase, batch size, precision, execution, environment."""
    grouped: dict[str, list[SummaryRow]] = {}
    several = len({row.environment for row in rows}) > 1
    for row in rows:
        case = row.case
        title = f"{case.config}, {case.phase}, {case.precision}, {case.execution}, batch {case.batch_size}"
        if row.emulated_memory_bytes is not None:
            title += f", {format_bytes(row.emulated_memory_bytes)} of memory emulated"
        grouped.setdefault(title + (f", environment {row.environment}" if several else ""), []).append(row)
    return list(grouped.items())


def row_cells(row: SummaryRow) -> dict[str, str]:
    """Return what stands in each of the columns."""
    status = row.status if not row.flags else f"{row.status} ({', '.join(row.flags)})"
    cells = (
        row.case.mechanism,
        _implementation(row),
        str(row.case.resolution),
        f"{row.case.tokens:,}",
        "" if row.latency_seconds is None else format_seconds(row.latency_seconds),
        _interval(row),
        "" if row.speedup_over_reference is None else f"{significant(row.speedup_over_reference)}x",
        "" if row.processes is None else str(row.processes),
        "" if row.images_per_second is None else significant(row.images_per_second),
        "" if row.achieved_flops_per_second is None else format_flops_per_second(row.achieved_flops_per_second),
        "" if row.roofline_fraction is None else format_percent(row.roofline_fraction),
        _energy(row),
        _power(row),
        "" if row.peak_memory_bytes is None else format_bytes(row.peak_memory_bytes),
        "" if row.base_parameters is None else f"{row.base_parameters:,}",
        "" if row.parameters is None else f"{row.parameters:,}",
        status,
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _implementation(row: SummaryRow, *, short: bool = False) -> str:
    """The implementation, its options, and, unless ``short``, what the model decided by itself."""
    name = row.case.implementation + "".join(f" {key}={value}" for key, value in row.case.options)
    if short or row.choices is None:
        return name
    return f"{name} ({', '.join(f'{key}: {value}' for key, value in row.choices)})"


def _interval(row: SummaryRow, *, short: bool = False) -> str:
    """The interval of the latency, or why there is none and, unless ``short``, the range of all times instead."""
    if row.latency_low_seconds is not None and row.latency_high_seconds is not None:
        return format_interval_seconds(row.latency_low_seconds, row.latency_high_seconds)
    if row.processes is None or row.timed_iterations is None:
        return ""
    if row.timed_iterations == 1:
        return "single run"
    if row.processes > 1:
        reason = f"{row.processes} processes"
    else:
        reason = f"n = {row.timed_iterations}" if row.timed_iterations < MIN_SAMPLES else "correlated"
    if short or row.latency_min_seconds is None or row.latency_max_seconds is None:
        return reason
    return f"{reason}; range {format_interval_seconds(row.latency_min_seconds, row.latency_max_seconds)}"


def _energy(row: SummaryRow, *, short: bool = False) -> str:
    """The energy of an image, marked where it is of low confidence; ``short`` leaves out how sure it is and why."""
    if row.energy_status is None:
        return ""
    if row.joules_per_image is None:
        return "-" if short else f"not measured ({row.energy_reason})"
    high = row.joules_per_image_high
    half_width = None if short or high is None else high - row.joules_per_image
    text = format_joules(row.joules_per_image, half_width)
    if row.energy_status == "measured":
        return text
    return f"~{text}" if short else f"~{text} ({row.energy_reason})"


def _power(row: SummaryRow) -> str:
    if row.energy_status == "not_measured":
        return "not measured"
    return "" if row.average_power_watts is None else significant(row.average_power_watts)


def _reasons(rows: Iterable[SummaryRow]) -> list[str]:
    return [f"{row.case.cell}: {row.status}: {row.reason}" for row in rows if row.status != "ok"]
