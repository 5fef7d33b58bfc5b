"""Table 1 with two sides beside each other, as grids of text: the numbers, and the claims that carry over."""

from __future__ import annotations

from collections.abc import Sequence

from infsa_bench.analyze.claims import mechanism_list
from infsa_bench.analyze.scaling import claimed_exponent
from infsa_bench.analyze.sides import ABSENT, Estimate, Reach, Side, SideCell
from infsa_bench.analyze.table1 import CLOSE, Row, Table1
from infsa_bench.report.claims import interval_ends
from infsa_bench.report.footnotes import departures, tools
from infsa_bench.report.grid import FOOTNOTE_MARK, Grid
from infsa_bench.report.units import (
    format_bytes,
    format_interval_seconds,
    format_joules,
    format_seconds,
    significant,
)
from infsa_bench.spec import PHASES
from infsa_models.registry import CONFIGS, MECHANISMS

PHASE_WORDS = {"infer": "inference", "train": "training"}

NUMBERS = (
    "latency",
    "± %",
    "95 % interval",
    "latency, theirs",
    "ratio",
    "images/s",
    "images/s, theirs",
    "J/image",
    "J ± %",
    "J/image, theirs",
    "J ratio",
    "W",
    "W, theirs",
)
WORDS = ("compared", "kernels", "status")
COLUMNS = ("mechanism", "type", "parameters", "parameters, theirs", *NUMBERS, "reach", "reach, theirs", *WORDS)
SHORT_ONLY = ("± %", "J ± %")
"""The interval in short, as the farther of its ends, relative; where there is room it is written out."""

STRESS_COLUMNS = ("mechanism", "model", "phase", "side", *NUMBERS, *WORDS)
SHORT_COLUMNS = (
    "mechanism",
    "model",
    "phase",
    "side",
    "latency",
    "± %",
    "latency, theirs",
    "ratio",
    "images/s",
    "J/image",
    "J ± %",
    "J/image, theirs",
    "reach",
    "reach, theirs",
)
"""Those of a terminal and of a printed page: what is compared, not all that is known."""

NOT_BESIDE_PHASE = ("images/s", "J ± %")
"""What gives way in the stress test, whose rows need more words."""

LEFT = frozenset({"mechanism", "model", "phase", "type", *WORDS})


def block_title(table: Table1) -> str:
    """Return which side stands beside which."""
    return f"{_side_title(table.ours)}, beside {_side_title(table.theirs)}"


def _side_title(side: Side) -> str:
    if side.is_paper:
        return side.title
    return f"{side.title}, {side.implementation}, {' and '.join(side.precisions)}, {side.execution}"


def describe_sides(table: Table1, *, is_short: bool = False) -> list[str]:
    """Return what a reader must know before the numbers: what is beside what, and how it is compared.

    In short tables lack columns, and some of what those would show is said here.
    """
    rows = (*table.rows, *table.stress_rows)
    lines = [f"Ours: {describe_side(table.ours)}", f"Theirs: {describe_side(table.theirs)}"]
    if any(row.difference for row in rows):
        lines.append(
            "Ratios are ours over theirs; where they are said to be of other hardware or precision, they rank "
            "machines, not models; what carries over stands under Claims"
        )
    if "assumed" in {cell.energy_kind for row in rows for cell in (row.ours, row.theirs)}:
        lines.append(
            "Energy that is headed assumed was not measured: it is the latency times a power (200 W in inference, "
            "300 W in training), and is compared with nothing that was measured"
        )
    if is_short:
        lines += _short_remarks(table)
    else:
        lines.append(
            "W: J/image over the latency, the power that the two together state; status absent: not a cell of that side"
        )
    if any(row.is_close for row in rows):
        lines.append(
            f"{FOOTNOTE_MARK} less than {CLOSE:g} times from another linear mechanism of the same table: the effort "
            "that went into kernels may decide which of them is first"
        )
    if any(row.ours.processes == 1 for row in rows):
        lines.append("Intervals of one process are within it; another process may differ by more")
    return lines


def _short_remarks(table: Table1) -> list[str]:
    """Return in words what short tables have no columns for: implied power and kernels."""
    rows = (*table.rows, *table.stress_rows)
    lines = ["±%: the farther end of the 95 % interval; empty where there is none, from too few times"]
    powers = []
    for phase in PHASES:
        for side, cells in (("ours", [row.ours for row in rows]), (table.theirs.title, [row.theirs for row in rows])):
            watts = [
                cell.implied_watts
                for row, cell in zip(rows, cells, strict=True)
                if row.phase == phase and cell.implied_watts
            ]
            if watts:
                low, high = significant(min(watts)), significant(max(watts))
                powers.append(f"{PHASE_WORDS[phase]}, {side}: {low if low == high else f'{low} .. {high}'} W")
    if powers:
        lines.append(f"Implied power, J/image over latency: {'; '.join(powers)}")
    kernels: dict[str, list[str]] = {}
    for row in rows:
        if row.ours.kernels and row.mechanism not in kernels.setdefault(row.ours.kernels, []):
            kernels[row.ours.kernels].append(row.mechanism)
    if kernels:
        lines.append(f"Kernels: {'; '.join(f'{kind}: {mechanism_list(names)}' for kind, names in kernels.items())}")
    if table.ours.implementation in ("reference", "fast"):
        lines.append("How reference departs from the published code, and how fast computes the same: --format md")
    return lines


def describe_side(side: Side) -> str:
    """Return one line: what it is, and under which conditions."""
    parts = [side.title, side.device, side.implementation, ", ".join(side.precisions), side.execution]
    if side.emulated_memory_bytes is not None:
        parts.append(f"{format_bytes(side.emulated_memory_bytes)} of memory emulated")
    return "; ".join(parts)


def grids(table: Table1, *, is_short: bool = False) -> list[Grid]:
    """Return the table: nine rows for each model and phase, and the stress test; in short only what is compared."""
    found: list[tuple[Grid, list[Row]]] = []
    for config in CONFIGS:
        for phase in reversed(PHASES):
            rows = [row for row in table.rows if (row.config, row.phase) == (config, phase)]
            cells = tuple(
                (*_names(row, table), *_numbers(row, is_short), *_reaches(row, table, is_short), *_words(row))
                for row in rows
            )
            title = f"{config}, {PHASE_WORDS[phase]}, {rows[0].resolution} x {rows[0].resolution}, one image a batch"
            grid = Grid(title=title, columns=COLUMNS, rows=cells, left=LEFT)
            columns = [column for column in COLUMNS if phase == "infer" or not column.startswith("reach")]
            found.append((grid.only(columns), rows))
    cells = tuple(
        (_mechanism(row), row.config, row.phase, str(row.resolution), *_numbers(row, is_short), *_words(row))
        for row in table.stress_rows
    )
    stress = Grid(title="Stress test, one image a batch", columns=STRESS_COLUMNS, rows=cells, left=LEFT)
    found.append((stress, list(table.stress_rows)))
    return [
        _named(
            grid.only([column for column in grid.columns if _is_shown(column, grid, is_short)]),
            table,
            rows,
            is_short=is_short,
        )
        for grid, rows in found
    ]


def _is_shown(column: str, grid: Grid, is_short: bool) -> bool:
    if not is_short:
        return column not in SHORT_ONLY
    return column in SHORT_COLUMNS and not ("phase" in grid.columns and column in NOT_BESIDE_PHASE)


def footnotes(side: Side) -> tuple[str, list[tuple[str, str]]]:
    """Return a heading, and what must be known of each mechanism's implementation on a side; nothing of the paper's."""
    if side.implementation == "reference":
        return "How `reference` departs from the published code", departures(MECHANISMS)
    return "How `fast` computes the same", tools(MECHANISMS) if side.implementation == "fast" else []


def missing(table: Table1) -> list[str]:
    """Return why cells of ours have no number, a line for each reason."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in (*table.rows, *table.stress_rows):
        if row.ours.status != "ok":
            models = reasons.setdefault((row.ours.status, row.ours.reason), {})
            models.setdefault(f"{row.config} {row.phase} {row.resolution}", []).append(row.mechanism)
    return [
        f"{status}: {reason}: {'; '.join(f'{model}: {mechanism_list(names)}' for model, names in models.items())}"
        for (status, reason), models in reasons.items()
    ]


def _named(grid: Grid, table: Table1, rows: Sequence[Row], *, is_short: bool = False) -> Grid:
    """Return the grid with the sides' own names in the heads of its columns, and what ``rows`` say of energies."""
    theirs = "theirs" if is_short and not table.theirs.is_paper else table.theirs.title
    ours_assumed, theirs_assumed = (
        _assumed(cells) for cells in ([row.ours for row in rows], [row.theirs for row in rows])
    )
    heads = {
        "reach": "largest side",
        "J/image": f"J/image{ours_assumed}",
        "J/image, theirs": f"J/image, {theirs}{theirs_assumed}",
        "reach, theirs": f"largest side, {theirs}",
    }
    if is_short:
        heads |= {"latency, theirs": theirs, "J/image, theirs": "assumed J" if theirs_assumed else f"{theirs} J"}
        heads |= {"reach": "side", "reach, theirs": f"{theirs} side", "images/s": "img/s"}
        heads |= {"± %": "±%", "J ± %": "±% ", "J/image": "assumed J/image" if ours_assumed else "J/image"}

    def head(column: str) -> str:
        base, comma, _ = column.partition(", theirs")
        return heads.get(column, f"{base}, {theirs}" if comma else base)

    columns, left = tuple(map(head, grid.columns)), frozenset(map(head, grid.left))
    title = grid.title
    if is_short and (found := dict.fromkeys(row.difference for row in rows if row.difference)):
        # There is no room for the column that says so of each row.
        title += f"; ratios: {', '.join(found)}"
    return Grid(title=title, columns=columns, rows=grid.rows, left=left)


def _assumed(cells: Sequence[SideCell]) -> str:
    """Return what the head of a column of energies says of those that nobody measured."""
    powers = [cell.implied_watts for cell in cells if cell.energy_kind == "assumed" and cell.implied_watts]
    watts = sorted({round(power, -1) for power in powers})
    return f": assumed (latency x {' or '.join(f'{power:.0f}' for power in watts)} W)" if watts else ""


def _names(row: Row, table: Table1) -> tuple[str, ...]:
    kind = "quadratic" if claimed_exponent(row.mechanism) == 2 else "linear"
    counts = (side.parameters.get((row.config, row.mechanism)) for side in (table.ours, table.theirs))
    sides = (table.ours, table.theirs)
    return _mechanism(row), kind, *(_parameters(count, side) for count, side in zip(counts, sides, strict=True))


def _mechanism(row: Row) -> str:
    return row.mechanism + (FOOTNOTE_MARK if row.is_close else "")


def _parameters(count: int | None, side: Side) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.1f} M" if side.is_paper else f"{count:,}"


def _numbers(row: Row, is_short: bool) -> tuple[str, ...]:
    """Return the cells of NUMBERS; in short an interval is a percentage beside the latency."""
    ours, theirs = row.ours, row.theirs
    return (
        _latency(ours),
        _percent(ours.latency_seconds),
        _interval(ours),
        _latency(theirs),
        _ratio(row.latency_ratio, is_short),
        "" if ours.images_per_second is None else significant(ours.images_per_second),
        "" if theirs.images_per_second is None else significant(theirs.images_per_second),
        _energy(ours, is_short),
        _percent(ours.joules_per_image),
        _energy(theirs, is_short),
        _ratio(row.energy_ratio, is_short),
        "" if ours.implied_watts is None else significant(ours.implied_watts),
        "" if theirs.implied_watts is None else significant(theirs.implied_watts),
    )


def _words(row: Row) -> tuple[str, ...]:
    same = row.latency_ratio is not None and not row.difference
    status = f"{row.ours.status} ({', '.join(row.ours.flags)})" if row.ours.flags else row.ours.status
    return row.difference or ("same hardware" if same else ""), row.ours.kernels, status


def _reaches(row: Row, table: Table1, is_short: bool) -> tuple[str, ...]:
    model = (row.config, row.mechanism)
    return tuple(_reach(side.reach.get(model), is_short) for side in (table.ours, table.theirs))


def _reach(reach: Reach | None, is_short: bool) -> str:
    if reach is None:
        return ""
    largest = "none" if reach.resolution is None else str(reach.resolution)
    if is_short or reach.next_status is None:
        return largest
    return f"{largest} ({reach.next_resolution}: {reach.next_status})"


def _latency(cell: SideCell) -> str:
    if cell.latency_seconds is not None:
        return format_seconds(cell.latency_seconds.value)
    return "-" if cell.status == ABSENT else cell.status


def _interval(cell: SideCell) -> str:
    latency = cell.latency_seconds
    if latency is None or cell.processes is None:
        return ""
    processes = "1 process" if cell.processes == 1 else f"{cell.processes} processes"
    if latency.low is None or latency.high is None:
        return f"none ({processes})"
    return f"{format_interval_seconds(latency.low, latency.high)} ({processes})"


def _energy(cell: SideCell, is_short: bool) -> str:
    energy = cell.joules_per_image
    if energy is None:
        return "" if cell.latency_seconds is None else "-" if is_short else f"not measured ({cell.energy_reason})"
    half_width = None if is_short or energy.high is None else energy.high - energy.value
    doubt = "~" if cell.energy_kind == "measured_low_confidence" else ""
    return f"{doubt}{format_joules(energy.value, half_width)}"


def _percent(found: Estimate | None) -> str:
    """Return the farther end of an interval in percent of its estimate."""
    if found is None or found.low is None or found.high is None:
        return ""
    return significant(100 * max(found.high - found.value, found.value - found.low) / found.value, 2)


def _ratio(ratio: Estimate | None, is_short: bool) -> str:
    if ratio is None:
        return ""
    return f"{significant(ratio.value)}x" + ("" if is_short or ratio.low is None else f" ({interval_ends(ratio)})")
