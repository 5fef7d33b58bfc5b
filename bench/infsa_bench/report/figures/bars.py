"""Horizontal bars with their intervals and numbers, one row a series; a bar that is missing says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from infsa_bench.report.figures.selection import Series
from infsa_bench.report.figures.styles import HATCHES, OTHER_HATCH, draw_intervals, style

BAR_HEIGHT = 0.72


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: its value, the ends of its interval where it has one, the number beside it, or why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    text: str
    is_hollow: bool = False


def draw_bars(axes: Axes, bars: Sequence[tuple[Series, Bar]]) -> None:
    """Draw one bar a row, the first on top, with room for the numbers at their ends; no names beside them."""
    spans: list[tuple[float, float, float]] = []
    longest = max((max(bar.value, bar.high or 0.0) for _, bar in bars if bar.value is not None), default=1.0)
    for row, (series, bar) in enumerate(bars):
        colour, _ = style(series.mechanism)
        if bar.value is None:
            axes.annotate(
                bar.text,
                (0, row),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=7,
                color="#444444",
                style="italic",
                va="center",
            )
            continue
        face = "white" if bar.is_hollow else colour
        (drawn,) = axes.barh(row, bar.value, BAR_HEIGHT, facecolor=face, edgecolor=colour, linewidth=0.8)
        hatch = HATCHES.get(series.implementation, OTHER_HATCH)
        if hatch:
            # A hatch takes the colour of the edge: on a full bar it must be another than the bar's own.
            drawn.set(hatch=hatch, edgecolor=colour if bar.is_hollow else "white")
            axes.barh(row, bar.value, BAR_HEIGHT, facecolor="none", edgecolor=colour, linewidth=0.8)
        end = bar.value
        if bar.low is not None and bar.high is not None:
            spans.append((row, max(bar.low, 0.0), bar.high))
            end = max(end, bar.high)
        _write(axes, end, row, bar.text)
    draw_intervals(axes, spans, upright=False)
    axes.set_xlim(0, longest * 1.38)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks([])
    axes.grid(visible=True, axis="x", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    axes.locator_params(axis="x", nbins=4)


def _write(axes: Axes, end: float, row: int, text: str, **changes: Any) -> None:
    """Write a number behind the end of its bar, legible where a line crosses it."""
    plate = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    note = axes.annotate(
        text, (end, row), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center", bbox=plate, **changes
    )
    note.set_parse_math(False)
    # It is inside, whatever the arrangement of panels.
    note.set_in_layout(False)
