"""Summary rows as matplotlib figures. One colour and marker a mechanism, the same in every figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.quoting import one_line
from infsa_bench.report.table import blocks
from infsa_models.registry import MECHANISMS

# Paul Tol's "muted" scheme, made for colour-blind readers; the ninth line is black.
COLOURS = ("#000000", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#AA4499", "#CC6677", "#332288")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">")
STYLES = {name: (COLOURS[i], MARKERS[i]) for i, name in enumerate(MECHANISMS)}
OTHER_COLOURS = ("#882255", "#661100", "#6699CC", "#888888")
MARKER_SIZE = 5.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What a figure shows over resolution: of a row its value, both ends of its interval, and what a mark says.

    ``hollow`` tells which points are drawn hollow, ``hollow_meaning`` is what the legend says of them; ``lacking``
    returns why a row has no value: the letter of its mark and the meaning of that.
    """

    label: str
    value: Callable[[SummaryRow], float | None]
    interval: Callable[[SummaryRow], tuple[float | None, float | None]]
    hollow: Callable[[SummaryRow], bool]
    hollow_meaning: str
    lacking: Callable[[SummaryRow], tuple[str, str]]


def _failed(row: SummaryRow) -> tuple[str, str]:
    letter = FAILURE_LETTERS[row.status]
    return letter, "out of memory" if letter == "O" else row.status


LATENCY = Quantity(
    label="latency, one batch (seconds, median)",
    value=lambda row: row.latency_seconds,
    interval=lambda row: (row.latency_low_seconds, row.latency_high_seconds),
    hollow=lambda row: bool(row.launch_bound),
    hollow_meaning="hollow: launch-bound",
    lacking=_failed,
)
ENERGY = Quantity(
    label="energy (joules per image, mean)",
    value=lambda row: row.joules_per_image,
    interval=lambda row: (row.joules_per_image_low, row.joules_per_image_high),
    hollow=lambda row: row.energy_status == "measured_low_confidence",
    hollow_meaning="hollow: low confidence",
    lacking=lambda row: ("N", "energy not measured") if row.status == "ok" else _failed(row),
)


def render_latency_vs_resolution(rows: Sequence[SummaryRow]) -> Figure:
    """Latency against resolution, log-log, one panel a block of comparable rows, one line a mechanism.

    A cell without a number stands as a letter at its resolution, in the strip on top: O out of memory, T timeout,
    S skipped, and so on (the legend says it). Bars are 95 % intervals where there are any.
    """
    return _render(LATENCY, blocks(rows))


def render_energy_vs_resolution(rows: Sequence[SummaryRow]) -> Figure:
    """Joules per image in the same way, of the blocks in which any cell has them."""
    panels = [(title, block) for title, block in blocks(rows) if any(row.joules_per_image is not None for row in block)]
    return _render(ENERGY, panels)


def write_latency_vs_resolution(rows: Sequence[SummaryRow], path: Path) -> None:
    """Write :func:`render_latency_vs_resolution` as a PNG file."""
    render_latency_vs_resolution(rows).savefig(path, dpi=150)


def write_energy_vs_resolution(rows: Sequence[SummaryRow], path: Path) -> None:
    """Write :func:`render_energy_vs_resolution` as a PNG file."""
    render_energy_vs_resolution(rows).savefig(path, dpi=150)


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureKind:
    """A figure of a run. ``render`` returns None where the run has nothing to show in it, for the reason ``lacking``.

    ``describe`` returns what a reader who cannot see it should know.
    """

    title: str
    render: Callable[[Run], Figure | None]
    describe: Callable[[Run], str]
    lacking: str


def _latency_figure(run: Run) -> Figure | None:
    return render_latency_vs_resolution(run.rows) if run.rows else None


def _energy_figure(run: Run) -> Figure | None:
    has_energy = any(row.joules_per_image is not None for row in run.rows)
    return render_energy_vs_resolution(run.rows) if has_energy else None


def _lines(what: str) -> Callable[[Run], str]:
    def describe(run: Run) -> str:
        names = ", ".join(dict.fromkeys(row.case.mechanism for row in run.rows))
        sides = [row.case.resolution for row in run.rows]
        return one_line(f"{what} against image side, {min(sides)} to {max(sides)} pixels, one line each for {names}")

    return describe


FIGURES: Mapping[str, FigureKind] = {
    "latency_vs_resolution": FigureKind(
        title="Latency against resolution",
        render=_latency_figure,
        describe=_lines("Latency of one batch"),
        lacking="no cell was recorded",
    ),
    "energy_vs_resolution": FigureKind(
        title="Energy against resolution",
        render=_energy_figure,
        describe=_lines("Joules per image"),
        lacking="no energy was measured",
    ),
}


def style(mechanism: str) -> tuple[str, str]:
    """Return colour and marker of a mechanism; those from elsewhere share a few more colours."""
    known = STYLES.get(mechanism)
    if known:
        return known
    return OTHER_COLOURS[sum(mechanism.encode(errors="surrogatepass")) % len(OTHER_COLOURS)], "*"


def _render(quantity: Quantity, panels: Sequence[tuple[str, Sequence[SummaryRow]]]) -> Figure:
    figure = Figure(figsize=(7.5, 5.2 * max(1, len(panels))), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, block) in enumerate(panels):
        _draw_panel(figure.add_subplot(len(panels), 1, index + 1), title, block, quantity)
    return figure


def _draw_panel(axes: Axes, title: str, rows: Sequence[SummaryRow], quantity: Quantity) -> None:
    series: dict[Series, list[SummaryRow]] = {}
    for row in rows:
        options = "".join(f" {name}={value}" for name, value in row.case.options)
        series.setdefault((row.case.mechanism, row.case.implementation, options), []).append(row)
    several = len({implementation for _, implementation, _ in series}) > 1
    for (mechanism, implementation, options), items in series.items():
        label = one_line((f"{mechanism} ({implementation})" if several else mechanism) + options)
        _draw_series(axes, items, quantity, label=label, linestyle=LINES.get(implementation, ":"))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    resolutions = sorted({row.case.resolution for row in rows})
    axes.set_xticks(resolutions, [str(resolution) for resolution in resolutions], rotation=45)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("image side (pixels)")
    axes.set_ylabel(quantity.label)
    axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
    lacking = [(key, row) for key, items in series.items() for row in items if quantity.value(row) is None]
    _draw_lacking(axes, list(series), lacking, quantity, any_measured=len(lacking) < len(rows))
    # The note on missing numbers stands between the title and the panel.
    axes.set_title(one_line(title), fontsize=10, loc="left", parse_math=False, pad=16 if lacking else 6)
    _draw_legend(axes, quantity.hollow_meaning if any(quantity.hollow(row) for row in rows) else None)


def _draw_series(axes: Axes, rows: Sequence[SummaryRow], quantity: Quantity, *, label: str, linestyle: str) -> None:
    """Draw one line with the bars of its intervals, and white over the markers that are to be hollow."""
    points = [(row, value) for row in rows if (value := quantity.value(row)) is not None]
    colour, marker = style(rows[0].case.mechanism)
    axes.plot(
        [row.case.resolution for row, _ in points],
        [value for _, value in points],
        color=colour,
        marker=marker,
        markersize=MARKER_SIZE,
        linewidth=1.4,
        linestyle=linestyle,
        label=label,
    )
    for row, value in points:
        low, high = quantity.interval(row)
        if low is not None and high is not None:
            # A logarithmic axis has no place for an interval that reaches zero: it ends at the lower edge then.
            bar = [[value - max(low, value * 1e-3)], [high - value]]
            axes.errorbar(row.case.resolution, value, yerr=bar, fmt="none", ecolor=colour, elinewidth=0.8, capsize=0)
    hollow = [(row.case.resolution, value) for row, value in points if quantity.hollow(row)]
    if hollow:
        # Above the lines, and as large as the markers beneath: points have diameters, scattered ones areas.
        sides, values = zip(*hollow, strict=True)
        axes.scatter(sides, values, s=MARKER_SIZE**2, marker=marker, facecolors="white", edgecolors=colour, zorder=3)


def _draw_legend(axes: Axes, hollow_meaning: str | None) -> None:
    handles: list[tuple[Line2D, str]] = [(line, str(line.get_label())) for line in axes.lines]
    if hollow_meaning is not None:
        hollow = Line2D([], [], color="grey", marker="o", markersize=MARKER_SIZE, markerfacecolor="white", linestyle="")
        handles.append((hollow, hollow_meaning))
    # A name may begin with an underscore, which legends leave out, or hold dollar signs, which they read as formulas.
    legend = axes.legend(
        [handle for handle, _ in handles],
        ["name"] * len(handles),
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
    )
    for text, (_, label) in zip(legend.get_texts(), handles, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def _draw_lacking(
    axes: Axes,
    order: list[Series],
    lacking: Sequence[tuple[Series, SummaryRow]],
    quantity: Quantity,
    *,
    any_measured: bool,
) -> None:
    """Mark cells without a number as letters above the panel's data, one height a line of the legend."""
    if not lacking:
        return
    # An axis without data has no limits of its own.
    low, high = axes.get_ylim() if any_measured else (1e-3, 1.0)
    # The data keep the lower part of a logarithmic axis; the marks get a strip above it.
    axes.set_ylim(low, high * (high / low) ** (0.045 * len(order)))
    axes.hlines(high, *axes.get_xlim(), colors="grey", linestyles=":", linewidth=0.8)
    letters: dict[str, str] = {}
    for key, row in lacking:
        letter, meaning = quantity.lacking(row)
        letters[letter] = meaning
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
    axes.text(0.0, 1.01, note, fontsize=7, ha="left", va="bottom", transform=axes.transAxes)
