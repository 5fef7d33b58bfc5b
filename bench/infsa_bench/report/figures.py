"""Summary rows as matplotlib figures. One colour and marker a mechanism, the same in every figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.table import blocks
from infsa_models.registry import MECHANISMS

# Paul Tol's "muted" scheme, made for colour-blind readers; the ninth line is black.
COLOURS = ("#000000", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#AA4499", "#CC6677", "#332288")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">")
STYLES = {name: (COLOURS[i], MARKERS[i]) for i, name in enumerate(MECHANISMS)}
OTHER_COLOURS = ("#882255", "#661100", "#6699CC", "#888888")
LINES = {"reference": "-", "fast": "--"}
FAILURE_LETTERS = {
    "oom": "O",
    "host_oom": "O",
    "timeout": "T",
    "crash": "C",
    "killed": "K",
    "unsupported": "U",
    "skipped": "S",
    "error": "E",
}

Series = tuple[str, str, str]
"""What one line shows: mechanism, implementation, options."""


def render_latency_vs_resolution(rows: Sequence[SummaryRow]) -> Figure:
    """Latency against resolution, log-log, one panel a block of comparable rows, one line a mechanism.

    A cell without a number stands as a letter at its resolution, in the strip on top: O out of memory, T timeout,
    S skipped, and so on (the legend says it).
    """
    panels = blocks(rows)
    figure = Figure(figsize=(7.5, 5.2 * max(1, len(panels))), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, block) in enumerate(panels):
        _draw_panel(figure.add_subplot(len(panels), 1, index + 1), title, block)
    return figure


def write_latency_vs_resolution(rows: Sequence[SummaryRow], path: Path) -> None:
    """Write :func:`render_latency_vs_resolution` as a PNG file."""
    render_latency_vs_resolution(rows).savefig(path, dpi=150)


def style(mechanism: str) -> tuple[str, str]:
    """Return colour and marker of a mechanism; those from elsewhere share a few more colours."""
    known = STYLES.get(mechanism)
    if known:
        return known
    return OTHER_COLOURS[sum(mechanism.encode()) % len(OTHER_COLOURS)], "*"


def _draw_panel(axes: Axes, title: str, rows: Sequence[SummaryRow]) -> None:
    series: dict[Series, list[SummaryRow]] = {}
    for row in rows:
        options = "".join(f" {name}={value}" for name, value in row.case.options)
        series.setdefault((row.case.mechanism, row.case.implementation, options), []).append(row)
    several = len({implementation for _, implementation, _ in series}) > 1
    for (mechanism, implementation, options), items in series.items():
        measured = [(row.case.resolution, row.latency_seconds) for row in items if row.latency_seconds is not None]
        colour, marker = style(mechanism)
        axes.plot(
            [resolution for resolution, _ in measured],
            [latency_seconds for _, latency_seconds in measured],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            linestyle=LINES.get(implementation, ":"),
            label=(f"{mechanism} ({implementation})" if several else mechanism) + options,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    resolutions = sorted({row.case.resolution for row in rows})
    axes.set_xticks(resolutions, [str(resolution) for resolution in resolutions], rotation=45)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("image side (pixels)")
    axes.set_ylabel("latency, one batch (seconds, median)")
    axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
    failures = [(key, row) for key, items in series.items() for row in items if row.status != "ok"]
    _draw_failures(axes, list(series), failures, any_measured=len(failures) < len(rows))
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    # A name may begin with an underscore, which legends leave out, or hold dollar signs, which they read as formulas.
    stand_ins = ["name"] * len(series)
    legend = axes.legend(axes.lines, stand_ins, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    for text, line in zip(legend.get_texts(), axes.lines, strict=True):
        text.set_parse_math(False)
        text.set_text(str(line.get_label()))


def _draw_failures(
    axes: Axes,
    order: list[Series],
    failures: Sequence[tuple[Series, SummaryRow]],
    *,
    any_measured: bool,
) -> None:
    """Mark cells without a number as letters above the panel's data, one height a line of the legend."""
    if not failures:
        return
    # An axis without data has no limits of its own.
    low, high = axes.get_ylim() if any_measured else (1e-3, 1.0)
    # The data keep the lower part of a logarithmic axis; the marks get a strip above it.
    axes.set_ylim(low, high * (high / low) ** (0.045 * len(order)))
    axes.hlines(high, *axes.get_xlim(), colors="grey", linestyles=":", linewidth=0.8)
    letters: dict[str, str] = {}
    for key, row in failures:
        letter = FAILURE_LETTERS[row.status]
        letters[letter] = "out of memory" if letter == "O" else row.status
        axes.text(
            row.case.resolution,
            0.985 - 0.03 * order.index(key),
            letter,
            color=style(key[0])[0],
            fontsize=7,
            fontweight="bold",
            ha="center",
            va="top",
            transform=axes.get_xaxis_transform(),
        )
    note = "no number: " + ", ".join(f"{letter} = {meaning}" for letter, meaning in sorted(letters.items()))
    axes.text(1.0, 1.01, note, fontsize=7, ha="right", va="bottom", transform=axes.transAxes)
