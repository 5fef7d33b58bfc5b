"""The shallow model beside the deep one: what six times the layers cost."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.figures.selection import (
    Series,
    blocks_with,
    by_series,
    chosen_resolution,
    has_several_implementations,
)
from infsa_bench.report.figures.styles import (
    LINES,
    MOST_PANELS,
    draw_intervals,
    draw_legend,
    draw_ticks,
    draw_title,
    failure_of,
    in_plain_style,
    new_figure,
    number_axis,
    style,
)
from infsa_bench.report.figures.words import counted
from infsa_bench.report.units import significant
from infsa_models.registry import CONFIGS

SHALLOW, DEEP = "4L-64H", "24L-16H"
DEPTH_RATIO = CONFIGS[DEEP].depth / CONFIGS[SHALLOW].depth
SHALLOW_SIZE, DEEP_SIZE = 5.0, 9.0

Pair = tuple[SummaryRow | None, SummaryRow | None]
"""The rows of the two configs, shallow first."""


@in_plain_style
def render_depth_comparison(run: Run) -> Figure | None:
    """Latency of 4L-64H (small marks) and 24L-16H (large ones), one row a mechanism, with their ratio.

    A tick stands where six times the shallow latency would be: both models have the same width, so that a layer costs
    about as much in either, and depth alone gives a ratio of six. A large mark left of its tick has something in it
    that does not grow with depth (the patch embedding, say), or gains from 16 wide heads in the place of 64 narrow
    ones, which are the other difference between the two.
    """
    panels = _panels(run)
    if not panels:
        return None
    heights = [0.27 * len(pairs) + 1.2 for _, _, pairs in panels]
    figure = new_figure(9.5, sum(heights))
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for index, (title, resolution, pairs) in enumerate(panels):
        _draw_panel(figure.add_subplot(grid[index]), f"{title}, {resolution} x {resolution} pixels", pairs)
    draw_legend(
        figure,
        [
            (Line2D([], [], color="grey", marker="o", linestyle="", markersize=SHALLOW_SIZE), SHALLOW),
            (Line2D([], [], color="grey", marker="o", linestyle="", markersize=DEEP_SIZE), DEEP),
            (
                Line2D([], [], color="black", marker="|", markersize=11, linestyle=""),
                f"{DEPTH_RATIO:.0f} times {SHALLOW}",
            ),
        ],
    )
    return figure


def describe_depth_comparison(run: Run) -> str:
    """Say what the figure shows, with the smallest and the largest ratio of its first panel."""
    panels = _panels(run)
    text = f"Latency of {SHALLOW} beside {DEEP} for each mechanism: {counted(len(panels), 'panel')}."
    for title, resolution, pairs in panels:
        ratios = [(found, series) for series, pair in pairs.items() if (found := ratio(pair)) is not None]
        if ratios:
            several = has_several_implementations(row for pair in pairs.values() for row in pair if row)
            (low, least), (high, most) = min(ratios, key=lambda item: item[0]), max(ratios, key=lambda item: item[0])
            return (
                f"{text} {title}, at {resolution} x {resolution} pixels the deeper model takes "
                f"{significant(low)} ({least.label(with_implementation=several)}) to {significant(high)} "
                f"({most.label(with_implementation=several)}) times as long; depth alone would give {DEPTH_RATIO:.0f}."
            )
    return text


def ratio(pair: Pair) -> float | None:
    """Return the latency of the deep model over that of the shallow one; None where one is lacking."""
    shallow, deep = (row.latency_seconds if row else None for row in pair)
    return deep / shallow if shallow and deep else None


def _panels(run: Run) -> list[tuple[str, int, dict[Series, Pair]]]:
    """What is shown: of each block but for its config the resolution and the pairs."""
    known = [row for row in run.rows if row.case.config in (SHALLOW, DEEP)]
    panels = []
    for title, anonymous in blocks_with([_without_config(row) for row in known], _ran):
        cells = {row.case.cell for row in anonymous}
        block = [row for row in known if _without_config(row).case.cell in cells]
        of_config = [
            {_without_config(row).case.cell: row for row in block if row.case.config == name}
            for name in (SHALLOW, DEEP)
        ]
        both = {cell for cell in cells if all(cell in rows and _ran(rows[cell]) for rows in of_config)}
        resolution = chosen_resolution((row for row in anonymous if row.case.cell in both), _ran)
        if resolution is None:
            continue
        pairs: dict[Series, Pair] = {}
        for series, rows in by_series(row for row in anonymous if row.case.resolution == resolution).items():
            cell = rows[0].case.cell
            pairs[series] = (of_config[0].get(cell), of_config[1].get(cell))
        panels.append((title.removeprefix(", "), resolution, pairs))
    return panels[:MOST_PANELS]


def _without_config(row: SummaryRow) -> SummaryRow:
    return replace(row, case=replace(row.case, config=""))


def _ran(row: SummaryRow) -> bool:
    return row.latency_seconds is not None


def _draw_panel(axes: Axes, title: str, pairs: dict[Series, Pair]) -> None:
    axes.set_xscale("log")
    for place, (series, pair) in enumerate(pairs.items()):
        _draw_pair(axes, place, series, pair)
    several = has_several_implementations(row for pair in pairs.values() for row in pair if row)
    names = [series.label(with_implementation=several) for series in pairs]
    draw_ticks(axes.yaxis, range(len(names)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlabel("latency, one batch (seconds, median)")
    axes.autoscale_view()
    number_axis(axes.xaxis)
    axes.grid(visible=True, axis="x", which="major", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    draw_title(axes, title)


def _draw_pair(axes: Axes, place: int, series: Series, pair: Pair) -> None:
    colour, marker = style(series.mechanism)
    points = [row.latency_seconds if row else None for row in pair]
    found = [seconds for seconds in points if seconds]
    linestyle = LINES.get(series.implementation, ":")
    axes.plot(found, [place] * len(found), color=colour, linestyle=linestyle, linewidth=1.2, zorder=1.8)
    for row, size in zip(pair, (SHALLOW_SIZE, DEEP_SIZE), strict=True):
        if row is None or not row.latency_seconds:
            continue
        axes.plot([row.latency_seconds], [place], color=colour, marker=marker, markersize=size, linestyle="")
        low, high = row.latency_low_seconds, row.latency_high_seconds
        if low is not None and high is not None:
            draw_intervals(axes, [(place, low, high)], upright=False)
    if points[0]:
        expected = points[0] * DEPTH_RATIO
        axes.plot([expected], [place], color="black", marker="|", markersize=11, linestyle="", zorder=1.9)
    both = ratio(pair)
    axes.annotate(
        _lacking(pair) if both is None else f"{significant(both)}x",
        (1.0, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
        va="center",
        style="italic" if both is None else "normal",
    )


def _lacking(pair: Pair) -> str:
    """Say why there is no ratio: what the first config without a latency ran into."""
    for name, row in zip((SHALLOW, DEEP), pair, strict=True):
        if row is None or not row.latency_seconds:
            return f"{name}: {'not in this run' if row is None else failure_of(row)[1]}"
    raise AssertionError("a pair without a ratio lacks one of its latencies")
