"""Which mechanism gets how far: a grid of mechanisms and resolutions, each cell by how it ended."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.figures.selection import blocks_with, by_series, has_several_implementations
from infsa_bench.report.figures.styles import (
    LONGEST_TITLE,
    draw_legend,
    draw_ticks,
    draw_title,
    failure_of,
    in_plain_style,
    legible,
    new_figure,
)
from infsa_bench.report.figures.words import counted
from infsa_bench.report.units import format_bytes

FINE = "#e3eef7"
OUTCOMES = {
    "O": ("#8c2d19", "white", ""),
    "T": ("#f2b661", "black", "////"),
    "S": ("#dddddd", "black", "----"),
    "U": ("#c9b6d8", "black", "\\\\\\\\"),
    "C": ("#3f3f3f", "white", ""),
    "K": ("#7a7a7a", "white", ""),
    "E": ("#5d3a73", "white", ""),
}
"""Of each letter the cell's colour, the letter's, and a hatch."""

MOST_RESOLUTIONS = 24
PARTLY = "*"
MOST_NAMES = 9


@in_plain_style
def render_oom_frontier(run: Run) -> Figure | None:
    """How each cell ended, one grid a block: peak memory where it ran, else the letter of what stopped it.

    A row is a mechanism in one implementation, a column a resolution; nothing stands where nothing was planned. A star
    says that some replicates of the cell failed.
    """
    panels = blocks_with(run.rows)
    if not panels:
        return None
    sizes = [(len(by_series(block)), len(_resolutions(block))) for _, block in panels]
    heights = [0.27 * series + 0.95 for series, _ in sizes]
    figure = new_figure(max(9.0, 4.2 + 0.66 * max(count for _, count in sizes)), sum(heights))
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    letters: dict[str, str] = {}
    for index, (title, block) in enumerate(panels):
        letters |= _draw_panel(figure.add_subplot(grid[index]), title, block)
    entries = [(Patch(facecolor=FINE, edgecolor="grey"), "ran: peak memory")]
    if any(_is_partly(row) for _, block in panels for row in block):
        entries.append((Patch(facecolor=FINE, edgecolor="grey"), f"{PARTLY} some replicates failed"))
    for letter, meaning in sorted(letters.items()):
        colour, _, hatch = OUTCOMES[letter]
        entries.append((Patch(facecolor=colour, edgecolor="grey", hatch=hatch), f"{letter}: {meaning}"))
    draw_legend(figure, entries)
    return figure


def describe_oom_frontier(run: Run) -> str:
    """Say what the figure shows, and of its first panel who completed the largest resolution and who did not."""
    panels = blocks_with(run.rows)
    text = f"How every cell ended, mechanism by resolution: {counted(len(panels), 'grid')}."
    for title, block in panels:
        largest = max(row.case.resolution for row in block)
        there = [(series, rows[-1]) for series, rows in by_series(block).items()]
        several = has_several_implementations(block)
        done = [series for series, row in there if row.case.resolution == largest and row.status == "ok"]
        others = [series for series, _ in there if series not in done]
        found = (
            f"{text} {legible(title, LONGEST_TITLE)}, at {largest} x {largest} pixels {len(done)} of {len(there)} ran"
        )
        if not done or not others:
            return f"{found}."
        named, word = (done, ": ") if len(done) <= len(others) else (others, ", all but ")
        names = [series.label(with_implementation=several) for series in named]
        rest = [] if len(names) <= MOST_NAMES else [f"{len(names) - MOST_NAMES} more"]
        return f"{found}{word}{', '.join(names[:MOST_NAMES] + rest)}."
    return text


def _resolutions(block: Sequence[SummaryRow]) -> list[int]:
    """The columns of a block; of very many the largest, where the frontier is."""
    return sorted({row.case.resolution for row in block})[-MOST_RESOLUTIONS:]


def _is_partly(row: SummaryRow) -> bool:
    return row.status == "ok" and any("_in_" in flag and "_of_" in flag for flag in row.flags)


def _draw_panel(axes: Axes, title: str, block: Sequence[SummaryRow]) -> dict[str, str]:
    grouped = by_series(block)
    resolutions = _resolutions(block)
    letters: dict[str, str] = {}
    cells: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for line, rows in enumerate(grouped.values()):
        for row in rows:
            if row.case.resolution not in resolutions:
                continue
            colour, ink, hatch, text = FINE, "black", "", _memory(row)
            if row.status != "ok":
                text, meaning = failure_of(row)
                letters[text] = meaning
                colour, ink, hatch = OUTCOMES[text]
            cells.setdefault((colour, hatch), []).append((resolutions.index(row.case.resolution), line))
            size = 8 if row.status != "ok" else 6.5
            plate = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"} if hatch else None
            name = axes.text(
                resolutions.index(row.case.resolution),
                line,
                text,
                color=ink,
                fontsize=size,
                fontweight="bold" if row.status != "ok" else "normal",
                ha="center",
                va="center",
                bbox=plate,
            )
            # It is inside, whatever the arrangement of panels.
            name.set_in_layout(False)
    for (colour, hatch), places in cells.items():
        _draw_cells(axes, places, colour, hatch)
    axes.set_xlim(-0.5, len(resolutions) - 0.5)
    axes.set_ylim(len(grouped) - 0.5, -0.5)
    axes.set_xlabel("image side (pixels)")
    draw_ticks(axes.xaxis, range(len(resolutions)), [_short(side) for side in resolutions], fontsize=8)
    several = has_several_implementations(block)
    names = [series.label(with_implementation=several) for series in grouped]
    draw_ticks(axes.yaxis, range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    draw_title(axes, title)
    return letters


def _draw_cells(axes: Axes, places: Sequence[tuple[int, int]], colour: str, hatch: str) -> None:
    """Draw the cells that look the same, at so many (column, line)."""
    corners = ((-0.48, -0.46), (0.48, -0.46), (0.48, 0.46), (-0.48, 0.46), (-0.48, -0.46))
    cells = [Path([(column + x, line + y) for x, y in corners], closed=True) for column, line in places]
    # The edge is there for the hatch, which takes its colour. One patch for all of them: files stay small.
    axes.add_patch(
        PathPatch(Path.make_compound_path(*cells), facecolor=colour, edgecolor="#9a9a9a", hatch=hatch, linewidth=0.0)
    )


def _memory(row: SummaryRow) -> str:
    text = "ok" if row.peak_memory_bytes is None else format_bytes(row.peak_memory_bytes)
    return text + (PARTLY if _is_partly(row) else "")


def _short(side: int) -> str:
    return str(side) if side < 10**6 else f"{side:.0e}"
