"""Throughput against energy: how many images a second, and what each of them costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon

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
    draw_intervals,
    draw_legend,
    draw_title,
    in_plain_style,
    new_figure,
    number_axis,
    style,
)
from infsa_bench.report.figures.words import describe_panels
from infsa_bench.report.units import significant
from infsa_models.registry import MECHANISMS

Point = tuple[float, float]

POINT_SIZE = 9.0
TIER_COLOURS = {"quadratic": "#e6cdb4", "linear": "#e4eef8"}
TIER_WIDTH = 30.0
"""How far, in points, the area of a tier reaches around its mechanisms, both sides together."""


def tier(mechanism: str) -> str | None:
    """Return ``quadratic`` or ``linear`` in tokens by the registry; None for a mechanism from elsewhere."""
    known = MECHANISMS.get(mechanism)
    if known is None:
        return None
    return "quadratic" if "N^2" in known.complexity else "linear"


@in_plain_style
def render_throughput_vs_energy(run: Run) -> Figure | None:
    """Images a second against joules an image, log-log, one point a mechanism, at one resolution a block.

    That is 1024 x 1024 where most mechanisms have both there, else the largest at which most have. Bars are 95 %
    intervals of the energy; hollow points are of low confidence. Shaded areas hold the mechanisms whose time is linear
    and those whose time is quadratic in tokens. Where both implementations were measured, a line leads from
    ``reference`` (full) to ``fast`` (half full).
    """
    panels = _panels(run)
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(7.5 if columns == 1 else 12.0, 4.8 * lines)
    entries: dict[Series, Artist] = {}
    several = has_several_implementations([row for _, rows in panels for row in rows])
    for index, (title, rows) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, index + 1)
        entries |= _draw_panel(axes, title, rows, several=several)
    names = [
        (entries[series], series.label(with_implementation=several))
        for series in sorted(entries, key=lambda series: series.sort_key)
    ]
    draw_legend(figure, names + _meanings([row for _, rows in panels for row in rows]))
    return figure


def describe_throughput_vs_energy(run: Run) -> str:
    """Say what the figure shows, with the most and the least frugal mechanism of its first panel."""
    return describe_panels(
        "Images per second against joules per image",
        _panels(run),
        value=lambda row: row.joules_per_image,
        shown=lambda joules: f"{significant(joules)} J an image",
        kind="points",
    )


def _has_both(row: SummaryRow) -> bool:
    return bool(row.images_per_second) and (row.joules_per_image or 0.0) > 0


def _panels(run: Run) -> list[tuple[str, list[SummaryRow]]]:
    """The rows that are shown, by block."""
    panels = []
    for title, block in blocks_with(run.rows, _has_both):
        resolution = chosen_resolution(block, _has_both)
        rows = [row for row in block if row.case.resolution == resolution and _has_both(row)]
        panels.append((title, rows))
    return panels


def _draw_panel(axes: Axes, title: str, rows: Sequence[SummaryRow], *, several: bool) -> dict[Series, Artist]:
    axes.set_xscale("log")
    axes.set_yscale("log")
    handles: dict[Series, Artist] = {}
    grouped = by_series(rows)
    for series, (row, *_) in grouped.items():
        handles[series] = _draw_point(axes, row, half=several and series.implementation != "reference")
    axes.margins(0.16)
    _draw_tiers(axes, [row for row, *_ in grouped.values()])
    if several:
        _draw_steps(axes, grouped)
    axes.set_xlabel("energy (joules per image, mean; less is better)")
    axes.set_ylabel("throughput (images per second)")
    axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
    axes.autoscale_view()
    for axis in (axes.xaxis, axes.yaxis):
        number_axis(axis)
    side = rows[0].case.resolution
    draw_title(axes, f"{title}, {side} x {side} pixels")
    return handles


def _place(row: SummaryRow) -> Point:
    assert row.joules_per_image is not None
    assert row.images_per_second is not None
    return row.joules_per_image, row.images_per_second


def _draw_point(axes: Axes, row: SummaryRow, *, half: bool) -> Artist:
    joules, rate = _place(row)
    colour, marker = style(row.case.mechanism)
    low, high = row.joules_per_image_low, row.joules_per_image_high
    if low is not None and high is not None:
        draw_intervals(axes, [(rate, max(low, joules * 1e-3), high)], upright=False, colour=colour)
    is_hollow = row.energy_status == "measured_low_confidence"
    (drawn,) = axes.plot([joules], [rate], color=colour, marker=marker, linestyle="", markersize=POINT_SIZE)
    drawn.set_fillstyle("left" if half and not is_hollow else "full")
    drawn.set_markerfacecolor("white" if is_hollow else colour)
    drawn.set_markerfacecoloralt("white")
    # The legend's is never hollow: what is, differs from panel to panel.
    handle = Line2D([], [], color=colour, marker=marker, linestyle="", markersize=POINT_SIZE - 2)
    handle.set_fillstyle("left" if half else "full")
    handle.set_markerfacecoloralt("white")
    return handle


def _draw_steps(axes: Axes, grouped: dict[Series, list[SummaryRow]]) -> None:
    """Lead from each reference to the same mechanism's fast."""
    for series, (row, *_) in grouped.items():
        for other, (twin, *_) in grouped.items():
            same = (series.mechanism, series.options) == (other.mechanism, other.options)
            if same and (series.implementation, other.implementation) == ("reference", "fast"):
                begin, end = _place(row), _place(twin)
                colour = style(series.mechanism)[0]
                axes.plot(*zip(begin, end, strict=True), color=colour, linestyle=":", linewidth=0.9, zorder=1.5)


def _draw_tiers(axes: Axes, rows: Sequence[SummaryRow]) -> None:
    """Shade the area around the mechanisms of each tier; the view stays as the points make it."""
    for name, colour in TIER_COLOURS.items():
        places = [_place(row) for row in rows if tier(row.case.mechanism) == name]
        # What is convex on logarithmic axes is so in logarithms.
        corners = [(10**x, 10**y) for x, y in hull([(math.log10(x), math.log10(y)) for x, y in places])]
        if not corners:
            continue
        # The wide round edge is what keeps the area away from its points, and is all there is of one with one point.
        area = Polygon(corners if len(corners) > 2 else [*corners, *corners], closed=True, facecolor=colour)
        area.set(edgecolor=colour, linewidth=TIER_WIDTH, joinstyle="round", capstyle="round", zorder=0.5)
        axes.add_artist(area)


def hull(points: Sequence[Point]) -> list[Point]:
    """Return the corners of the smallest convex area around points, counted round.

    Of fewer than three points, or of points on a line, its ends.
    """
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return ordered

    def half(points: Sequence[Point]) -> list[Point]:
        kept: list[Point] = []
        for x, y in points:
            while len(kept) > 1:
                (ax, ay), (bx, by) = kept[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    return half(ordered) + half(ordered[::-1])


def _meanings(rows: Sequence[SummaryRow]) -> list[tuple[Artist, str]]:
    """What a legend says beside the mechanisms' names."""
    meanings: list[tuple[Artist, str]] = []
    if any(row.energy_status == "measured_low_confidence" for row in rows):
        hollow = Line2D([], [], color="grey", marker="o", markersize=7, markerfacecolor="white", linestyle="")
        meanings.append((hollow, "hollow: low confidence"))
    shown = {tier(row.case.mechanism) for row in rows}
    meanings += [
        (Patch(facecolor=colour), f"time {name} in tokens") for name, colour in TIER_COLOURS.items() if name in shown
    ]
    return meanings
