"""A quantity over the size of the image, log-log: one panel a block of comparable rows, one line a mechanism."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.figures.selection import Series, by_series, has_several_implementations
from infsa_bench.report.figures.styles import (
    LINES,
    MARKER_SIZE,
    draw_intervals,
    draw_legend,
    draw_ticks,
    draw_title,
    new_figure,
    number_axis,
    style,
)

MARK_HEIGHT = 0.03
MOST_MARKED_SHARE = 0.45
"""Part of a panel that one line of marks takes, and the most that all of them may take."""

LEAST_TICK_RATIO = 1.1
SIDE_MARGIN = 1.12
MOST_BLOCKS_IN_A_COLUMN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What a figure shows over the size: of a row its place, its value, both ends of its interval, and what marks say.

    ``hollow`` tells which points are drawn hollow, ``hollow_meaning`` is what the legend says of them; ``lacking``
    returns why a row has no value: the letter of its mark and the meaning of that.
    """

    size_label: str
    size: Callable[[SummaryRow], float]
    label: str
    value: Callable[[SummaryRow], float | None]
    lacking: Callable[[SummaryRow], tuple[str, str]]
    interval: Callable[[SummaryRow], tuple[float | None, float | None]] = lambda _: (None, None)
    hollow: Callable[[SummaryRow], bool] = lambda _: False
    hollow_meaning: str = ""


Decorate = Callable[[Axes, Sequence[SummaryRow]], None]
"""Adds to a panel what only one figure has, after its lines and before its marks."""


def render_curves(
    quantity: Quantity, panels: Sequence[tuple[str, Sequence[SummaryRow]]], decorate: Decorate | None = None
) -> Figure:
    """Return the figure of a quantity, its panels in two columns where there are many."""
    columns = 1 if len(panels) <= MOST_BLOCKS_IN_A_COLUMN else 2
    lines = -(-len(panels) // columns)
    figure = new_figure(7.5 if columns == 1 else 13.0, 5.2 * max(1, lines))
    everything = [row for _, block in panels for row in block]
    several = has_several_implementations(everything)
    entries: dict[Series, Artist] = {}
    for index, (title, block) in enumerate(panels):
        axes = figure.add_subplot(max(1, lines), columns, index + 1)
        entries |= _draw_panel(axes, title, block, quantity, decorate, with_implementation=several)
    names = [
        (entries[series], series.label(with_implementation=several))
        for series in sorted(entries, key=lambda series: series.sort_key)
    ]
    if any(quantity.hollow(row) for row in everything if value_of(quantity, row) is not None):
        hollow = Line2D([], [], color="grey", marker="o", markersize=MARKER_SIZE, markerfacecolor="white", linestyle="")
        names.append((hollow, quantity.hollow_meaning))
    draw_legend(figure, names)
    return figure


def value_of(quantity: Quantity, row: SummaryRow) -> float | None:
    """Return a row's value, None where there is none that a logarithmic axis can show."""
    value = quantity.value(row)
    return value if value is not None and value > 0 else None


def _draw_panel(
    axes: Axes,
    title: str,
    rows: Sequence[SummaryRow],
    quantity: Quantity,
    decorate: Decorate | None,
    *,
    with_implementation: bool,
) -> Mapping[Series, Artist]:
    grouped = by_series(rows)
    lines: dict[Series, Artist] = {}
    for series, items in grouped.items():
        label = series.label(with_implementation=with_implementation)
        lines[series] = _draw_series(
            axes, items, quantity, label=label, linestyle=LINES.get(series.implementation, ":")
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = thinned({quantity.size(row) for row in rows})
    draw_ticks(axes.xaxis, sizes, [_size_label(size) for size in sizes], rotation=60, fontsize=8)
    axes.set_xlim(sizes[0] / SIDE_MARGIN, sizes[-1] * SIDE_MARGIN)
    axes.set_xlabel(quantity.size_label)
    axes.set_ylabel(quantity.label)
    axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
    if decorate is not None:
        decorate(axes, rows)
    lacking = {series: [row for row in items if value_of(quantity, row) is None] for series, items in grouped.items()}
    lacking = {series: items for series, items in lacking.items() if items}
    number_axis(axes.yaxis)
    any_measured = any(value_of(quantity, row) is not None for row in rows)
    draw_title(axes, title, _draw_lacking(axes, lacking, quantity, any_measured=any_measured))
    return lines


def _size_label(size: float) -> str:
    """A size as it stands below a panel: short, since there are many of them."""
    if size >= 10**7:
        return f"{size:.1e}"
    return f"{size:,.0f}" if size >= 10**5 else f"{size:.0f}"


def thinned(sizes: Iterable[float]) -> list[float]:
    """Return sizes in their order without those so near to the one before that their labels would meet."""
    kept: list[float] = []
    for size in sorted(sizes):
        if not kept or size >= LEAST_TICK_RATIO * kept[-1]:
            kept.append(size)
    return kept


def _draw_series(axes: Axes, rows: Sequence[SummaryRow], quantity: Quantity, *, label: str, linestyle: str) -> Artist:
    """Draw one line with the bars of its intervals, and white over the markers that are to be hollow."""
    points = [(row, value) for row in rows if (value := value_of(quantity, row)) is not None]
    colour, marker = style(rows[0].case.mechanism)
    (line,) = axes.plot(
        [quantity.size(row) for row, _ in points],
        [value for _, value in points],
        color=colour,
        marker=marker,
        markersize=MARKER_SIZE,
        linewidth=1.4,
        linestyle=linestyle,
        label=label,
    )
    spans = []
    for row, value in points:
        low, high = quantity.interval(row)
        if low is not None and high is not None:
            # A logarithmic axis has no place for an interval that reaches zero: it ends at the lower edge then.
            spans.append((quantity.size(row), max(low, value * 1e-3), high))
    draw_intervals(axes, spans, upright=True, colour=colour)
    hollow = [(quantity.size(row), value) for row, value in points if quantity.hollow(row)]
    if hollow:
        # Above the lines, and as large as the markers beneath: points have diameters, scattered ones areas.
        sizes, values = zip(*hollow, strict=True)
        axes.scatter(sizes, values, s=MARKER_SIZE**2, marker=marker, facecolors="white", edgecolors=colour, zorder=3)
    return line


def _draw_lacking(
    axes: Axes, lacking: Mapping[Series, Sequence[SummaryRow]], quantity: Quantity, *, any_measured: bool
) -> str:
    """Mark cells without a number as letters above the panel's data, one height a series that has any.

    Return what the letters mean.
    """
    if not lacking:
        return ""
    # An axis without data has no limits of its own.
    low, high = axes.get_ylim() if any_measured else (1e-3, 1.0)
    height = min(MARK_HEIGHT, MOST_MARKED_SHARE / len(lacking))
    share = height * len(lacking) + 0.025
    # The data keep the lower part of a logarithmic axis; the marks get a strip above it.
    axes.set_ylim(low, high * (high / low) ** (share / (1 - share)))
    axes.axhline(high, color="grey", linestyle=":", linewidth=0.8)
    for is_minor in (False, True):
        # Marks have no height: there are no numbers beside them.
        axes.set_yticks([tick for tick in axes.get_yticks(minor=is_minor) if low <= tick <= high], minor=is_minor)
    letters: dict[str, str] = {}
    for line, (series, rows) in enumerate(lacking.items()):
        for row in rows:
            letter, meaning = quantity.lacking(row)
            letters[letter] = meaning
            axes.text(
                quantity.size(row),
                0.985 - height * line,
                letter,
                color=style(series.mechanism)[0],
                fontsize=7,
                fontweight="bold",
                ha="center",
                va="top",
                transform=axes.get_xaxis_transform(),
            )
    return "no number: " + ", ".join(f"{letter} = {meaning}" for letter, meaning in sorted(letters.items()))
