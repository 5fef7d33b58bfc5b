"""One resolution at a glance: latency, throughput, energy, and the speed-up over softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.figures.bars import Bar, draw_bars
from infsa_bench.report.figures.selection import (
    Series,
    blocks_with,
    by_series,
    chosen_resolution,
    has_several_implementations,
)
from infsa_bench.report.figures.styles import LONGEST_TITLE, draw_ticks, failure_of, in_plain_style, legible, new_figure
from infsa_bench.report.figures.words import describe_panels
from infsa_bench.report.units import format_seconds, significant

Rows = Mapping[Series, SummaryRow | None]
"""The rows of a block at one resolution; None for a series that has none there."""


class Column(NamedTuple):
    """One of the four panels of a line, and what its hollow bars are."""

    name: str
    unit: str
    hollow: str


COLUMNS = (
    Column(name="latency", unit="ms, median", hollow="launch-bound"),
    Column(name="throughput", unit="images per second", hollow=""),
    Column(name="energy", unit="joules per image", hollow="low confidence"),
    Column(name="speed-up over softmax", unit="latency, times", hollow=""),
)


@in_plain_style
def render_dashboard(run: Run) -> Figure | None:
    """Latency, throughput, joules per image and speed-up over softmax as bars, one line of panels a block.

    At 1024 x 1024 where most mechanisms of the block ran there, else at the largest resolution at which most ran.
    Whiskers are 95 % intervals. A missing bar says why. The speed-up is over softmax of the same implementation; its
    whiskers reach from the ends of the two latencies' intervals that lie nearest to each other to those farthest.
    """
    shown = _shown(run)
    if not shown:
        return None
    heights = [0.24 * len(rows) + 1.15 for _, rows in shown]
    figure = new_figure(13.0, sum(heights))
    parts = figure.subfigures(len(shown), 1, height_ratios=heights, squeeze=False)
    for part, (title, rows) in zip(parts[:, 0], shown, strict=True):
        side = next(row for row in rows.values() if row).case.resolution
        part.suptitle(
            f"{side} x {side} pixels: {legible(title, LONGEST_TITLE)}", fontsize=10, x=0.01, ha="left", parse_math=False
        )
        panels = part.subplots(1, len(COLUMNS))
        columns = zip(*(_bars_of(row, rows) for row in rows.values()), strict=True)
        for axes, panel, bars in zip(panels, COLUMNS, columns, strict=True):
            draw_bars(axes, list(zip(rows, bars, strict=True)))
            hollow = f"; hollow: {panel.hollow}" if any(bar.is_hollow for bar in bars) else ""
            axes.set_title(f"{panel.name} ({panel.unit}{hollow})", fontsize=8.5, loc="left")
        _name_rows(panels[0], rows)
        panels[-1].axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    return figure


def describe_dashboard(run: Run) -> str:
    """Say what the figure shows, with the fastest and the slowest of its first line."""
    return describe_panels(
        "Bars of latency, throughput, joules per image and speed-up over softmax",
        [(title, [row for row in rows.values() if row]) for title, rows in _shown(run)],
        value=lambda row: row.latency_seconds,
        shown=format_seconds,
        kind="bars",
    )


def _shown(run: Run) -> list[tuple[str, Rows]]:
    """The rows of each block at its resolution, by series."""
    shown: list[tuple[str, Rows]] = []
    for title, block in blocks_with(run.rows, _ran):
        resolution = chosen_resolution(block, _ran)
        rows = {
            series: next((row for row in items if row.case.resolution == resolution), None)
            for series, items in by_series(block).items()
        }
        shown.append((title, rows))
    return shown


def _ran(row: SummaryRow) -> bool:
    return row.latency_seconds is not None


def _name_rows(axes: Axes, rows: Rows) -> None:
    several = has_several_implementations(row for row in rows.values() if row)
    names = [series.label(with_implementation=several) for series in rows]
    draw_ticks(axes.yaxis, range(len(names)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)


def _failed(row: SummaryRow) -> Bar | None:
    return None if row.status == "ok" else Bar(value=None, text=failure_of(row)[1])


def latency_bar(row: SummaryRow) -> Bar:
    """Return the bar of a latency, in milliseconds."""
    if row.latency_seconds is None:
        return _failed(row) or Bar(value=None, text="not measured")
    return Bar(
        value=row.latency_seconds * 1e3,
        low=None if row.latency_low_seconds is None else row.latency_low_seconds * 1e3,
        high=None if row.latency_high_seconds is None else row.latency_high_seconds * 1e3,
        text=format_seconds(row.latency_seconds),
        is_hollow=bool(row.launch_bound),
    )


def throughput_bar(row: SummaryRow) -> Bar:
    """Return the bar of a throughput."""
    if row.images_per_second is None:
        return _failed(row) or Bar(value=None, text="not measured")
    return Bar(value=row.images_per_second, text=significant(row.images_per_second))


def energy_bar(row: SummaryRow) -> Bar:
    """Return the bar of joules per image; hollow and with a tilde where it is of low confidence."""
    if row.joules_per_image is None or row.joules_per_image <= 0:
        reason = f" ({row.energy_reason})" if row.energy_reason else ""
        return _failed(row) or Bar(value=None, text=legible(f"not measured{reason}"))
    is_doubtful = row.energy_status == "measured_low_confidence"
    return Bar(
        value=row.joules_per_image,
        low=row.joules_per_image_low,
        high=row.joules_per_image_high,
        text=("~" if is_doubtful else "") + f"{significant(row.joules_per_image)} J",
        is_hollow=is_doubtful,
    )


def speedup_bar(row: SummaryRow, rows: Rows) -> Bar:
    """Return the bar of the speed-up over softmax of the same implementation, without options."""
    if row.latency_seconds is None:
        return _failed(row) or Bar(value=None, text="not measured")
    softmax = rows.get(Series(mechanism="softmax", implementation=row.case.implementation, options=""))
    if softmax is None:
        return Bar(value=None, text="no softmax to compare with")
    if softmax.latency_seconds is None:
        return Bar(value=None, text=f"softmax: {failure_of(softmax)[1]}" if softmax.status != "ok" else "no softmax")
    low = high = None
    if row is not softmax and None not in (row.latency_low_seconds, row.latency_high_seconds):
        low = _ratio(softmax.latency_low_seconds, row.latency_high_seconds)
        high = _ratio(softmax.latency_high_seconds, row.latency_low_seconds)
    speedup = softmax.latency_seconds / row.latency_seconds
    return Bar(value=speedup, low=low, high=high, text=f"{significant(speedup)}x")


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _bars_of(row: SummaryRow | None, rows: Rows) -> tuple[Bar, ...]:
    if row is None:
        return tuple(Bar(value=None, text="not in this run") for _ in COLUMNS)
    return latency_bar(row), throughput_bar(row), energy_bar(row), speedup_bar(row, rows)
