"""Achieved rates under what the device can do: the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infsa_bench.analyze.roofline import data_sheet
from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.machine import like
from infsa_bench.peaks import measured_device, peaks_of
from infsa_bench.report.figures.selection import (
    Series,
    blocks_with,
    by_series,
    has_several_implementations,
)
from infsa_bench.report.figures.styles import (
    LINES,
    LONGEST_TITLE,
    draw_legend,
    draw_title,
    in_plain_style,
    legible,
    new_figure,
    number_axis,
    style,
)
from infsa_bench.report.figures.words import counted
from infsa_bench.report.units import format_bytes_per_second, format_flops_per_second, format_percent

POINT_SIZE = 4.5
TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """Peak rates of matrix products and of memory."""

    flops_per_second: float
    bytes_per_second: float

    @property
    def ridge(self) -> float:
        """FLOP a byte from which on products bound, not memory."""
        return self.flops_per_second / self.bytes_per_second

    def at(self, intensity: float) -> float:
        """Return the most FLOP/s at so many FLOP a byte."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A block with the roofs over it; ``stated`` is the data sheet's, None where it is not known."""

    title: str
    rows: Sequence[SummaryRow]
    measured: Roof
    stated: Roof | None


@in_plain_style
def render_roofline(run: Run) -> Figure | None:
    """Achieved FLOP/s of matrix products against FLOP a byte that operators moved, log-log, one panel a block.

    A line joins the resolutions of a mechanism. The full roof is what was measured on this device in the block's
    precision, the dashed one its data sheet's. Bytes are counted operator by operator, nothing kept in a cache: points
    can lie above the slope.
    """
    panels = roofline_panels(run)
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(7.5 if columns == 1 else 13.0, 4.9 * lines)
    several = has_several_implementations(row for panel in panels for row in panel.rows)
    handles: dict[Series, Artist] = {}
    for index, panel in enumerate(panels):
        handles |= _draw_panel(figure.add_subplot(lines, columns, index + 1), panel)
    entries = [
        (handles[series], series.label(with_implementation=several))
        for series in sorted(handles, key=lambda series: series.sort_key)
    ]
    if any(row.launch_bound for panel in panels for row in panel.rows):
        hollow = Line2D([], [], color="grey", marker="o", markersize=POINT_SIZE, markerfacecolor="white", linestyle="")
        entries.append((hollow, "hollow: launch-bound"))
    entries.append((Line2D([], [], color="black", linewidth=1.6), "roof, measured"))
    if any(panel.stated for panel in panels):
        entries.append((Line2D([], [], color="#666666", linestyle=(0, (5, 3))), "roof, data sheet"))
    draw_legend(figure, entries)
    return figure


def describe_roofline(run: Run) -> str:
    """Say what the figure shows, with the roof and the point nearest to it of its first panel."""
    panels = roofline_panels(run)
    text = f"Achieved FLOP/s against FLOP per byte under the device's roofline: {counted(len(panels), 'panel')}."
    for panel in panels:
        best = max(panel.rows, key=lambda row: row.roofline_fraction or 0.0)
        (series,) = by_series([best])
        name = series.label(with_implementation=has_several_implementations(panel.rows))
        side = best.case.resolution
        return (
            f"{text} {legible(panel.title, LONGEST_TITLE)}: measured roof {_peaks(panel.measured)}; nearest to it "
            f"comes {name} at {side} x {side} pixels with {format_percent(best.roofline_fraction or 0.0)}."
        )
    return text


def roofline_panels(run: Run) -> list[Panel]:
    """Return the blocks that have counted operations, and peaks of their own device in their precision."""
    panels = []
    for title, block in blocks_with(run.rows, _is_counted):
        devices = like(run.manifest.environments, block[0].environment)
        precision = block[0].case.precision
        environment = measured_device(devices, run.all_peaks) if devices else None
        peaks = None if environment is None else peaks_of(environment, run.all_peaks)
        if environment is None or peaks is None:
            continue
        flops_per_second = peaks.flops_of(precision)
        if flops_per_second is None:
            continue
        sheet = data_sheet(environment)
        stated_flops = None if sheet is None else sheet.flops_of(precision)
        stated = None
        if sheet is not None and stated_flops is not None:
            stated = Roof(flops_per_second=stated_flops, bytes_per_second=sheet.memory_bytes_per_second)
        measured = Roof(flops_per_second=flops_per_second, bytes_per_second=peaks.copied_bytes_per_second.per_second)
        rows = [row for row in block if _is_counted(row)]
        panels.append(Panel(title=title, rows=rows, measured=measured, stated=stated))
    return panels


def _is_counted(row: SummaryRow) -> bool:
    return bool(row.achieved_flops_per_second and row.matmul_flops and row.operator_bytes)


def _place(row: SummaryRow) -> tuple[float, float]:
    """Intensity and rate of a row, in FLOP a byte and TFLOP/s."""
    assert row.matmul_flops is not None
    assert row.operator_bytes is not None
    assert row.achieved_flops_per_second is not None
    return row.matmul_flops / row.operator_bytes, row.achieved_flops_per_second / TERA


def _draw_panel(axes: Axes, panel: Panel) -> dict[Series, Artist]:
    axes.set_xscale("log")
    axes.set_yscale("log")
    handles: dict[Series, Artist] = {}
    for series, rows in by_series(panel.rows).items():
        colour, marker = style(series.mechanism)
        places = [_place(row) for row in rows]
        (handles[series],) = axes.plot(
            [x for x, _ in places],
            [y for _, y in places],
            color=colour,
            marker=marker,
            markersize=POINT_SIZE,
            linewidth=1.0,
            linestyle=LINES.get(series.implementation, ":"),
        )
        hollow = [_place(row) for row in rows if row.launch_bound]
        if hollow:
            x, y = zip(*hollow, strict=True)
            axes.scatter(x, y, s=POINT_SIZE**2, marker=marker, facecolors="white", edgecolors=colour, zorder=3)
    _draw_roofs(axes, panel)
    axes.set_xlabel("arithmetic intensity (FLOP per byte that operators move)")
    axes.set_ylabel("matrix products (TFLOP/s)")
    axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
    number_axis(axes.xaxis)
    number_axis(axes.yaxis)
    notes = [f"roof measured: {_peaks(panel.measured)}"]
    if panel.stated is not None:
        notes.append(f"data sheet: {_peaks(panel.stated)}")
    draw_title(axes, panel.title, "; ".join(notes))
    return handles


def _peaks(roof: Roof) -> str:
    return f"{format_flops_per_second(roof.flops_per_second)} and {format_bytes_per_second(roof.bytes_per_second)}"


def _draw_roofs(axes: Axes, panel: Panel) -> None:
    roofs = [panel.measured] + ([panel.stated] if panel.stated else [])
    places = [_place(row) for row in panel.rows]
    least, most = min(x for x, _ in places), max(x for x, _ in places)
    ridges = [roof.ridge for roof in roofs]
    left, right = min(least, *ridges) / 1.6, max(most, *ridges) * 2.5
    for roof, is_measured in zip(roofs, (True, False), strict=False):
        corners = np.array([left, roof.ridge, right])
        heights = [roof.at(float(x)) / TERA for x in corners]
        line = {"color": "black", "linewidth": 1.6} if is_measured else {"color": "#666666", "linestyle": (0, (5, 3))}
        axes.plot(corners, heights, zorder=1.7, **line)
    axes.set_xlim(left, right)
    tops = [roof.flops_per_second / TERA for roof in roofs] + [y for _, y in places]
    axes.set_ylim(min(y for _, y in places) / 1.6, max(tops) * 1.6)
