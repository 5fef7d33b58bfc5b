"""Peak memory over tokens, beside what cards have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.figures.curves import Quantity, render_curves
from infsa_bench.report.figures.selection import blocks_with
from infsa_bench.report.figures.styles import failure_of, in_plain_style
from infsa_bench.report.figures.words import describe_panels
from infsa_bench.report.units import format_bytes

GIB = 2**30
CARDS_GIB = (4, 8, 16, 24, 40, 80, 141)
"""Memory of cards that people have, in what their makers call gigabytes."""

NEAR = 1.25
"""Cards are shown up to this many times above the largest peak, and as far below the smallest."""

FAR = 6.0
"""The run's device, and the smallest card that holds everything, are left out beyond so many times the largest peak."""

SAME = 1.12
"""A card nearer to the run's own device than this is not shown beside it: the labels would meet."""

MEMORY = Quantity(
    size_label="tokens (class token included)",
    size=lambda row: float(row.case.tokens),
    label="peak memory (GiB)",
    value=lambda row: None if row.peak_memory_bytes is None else row.peak_memory_bytes / GIB,
    lacking=lambda row: ("N", "memory not measured") if row.status == "ok" else failure_of(row),
)


@in_plain_style
def render_memory_vs_tokens(run: Run) -> Figure | None:
    """Peak memory against tokens, log-log, with the memory of the run's device and of cards as horizontal lines.

    Peaks are what was allocated at most while the case ran, on a CPU what the process held above its start. Cells
    that failed stand as letters in the strip on top.
    """
    panels = _panels(run)
    if not panels:
        return None
    devices = {key: environment.device_memory_bytes for key, environment in run.manifest.environments.items()}
    return render_curves(MEMORY, panels, lambda axes, rows: _draw_sizes(axes, rows, devices))


def describe_memory_vs_tokens(run: Run) -> str:
    """Say what the figure shows, with the least and the most of its first panel."""
    return describe_panels(
        "Peak memory against tokens, with the memory of cards as lines",
        _panels(run),
        value=lambda row: row.peak_memory_bytes,
        shown=format_bytes,
    )


def _panels(run: Run) -> list[tuple[str, list[SummaryRow]]]:
    return blocks_with(run.rows, lambda row: bool(row.peak_memory_bytes))


def memory_lines(rows: Sequence[SummaryRow], devices: Mapping[str, int]) -> dict[str, float]:
    """Return the horizontal lines of a panel: what they are called, and their GiB."""
    peaks = [row.peak_memory_bytes / GIB for row in rows if row.peak_memory_bytes]
    lines: dict[str, float] = {}
    emulated = next((row.emulated_memory_bytes for row in rows if row.emulated_memory_bytes), None)
    own = emulated or next((devices[row.environment] for row in rows if devices.get(row.environment)), None)
    # However far above the peaks it lies, unless that would leave them no room.
    if own and own / GIB <= FAR * max(peaks):
        lines["emulated" if emulated else "this device"] = own / GIB
    for size in CARDS_GIB:
        is_near = min(peaks) / NEAR <= size <= NEAR * max(peaks) or _is_next_above(size, max(peaks))
        if is_near and not (own and 1 / SAME < size * GIB / own < SAME):
            lines[f"{size} GiB"] = size
    return lines


def _is_next_above(size: int, peak: float) -> bool:
    """Tell whether a card is the first one that would hold the largest peak, and not out of all proportion to it."""
    return size == next((card for card in CARDS_GIB if card >= peak), None) and size <= FAR * peak


def _draw_sizes(axes: Axes, rows: Sequence[SummaryRow], devices: Mapping[str, int]) -> None:
    for name, size in memory_lines(rows, devices).items():
        is_own = name in ("this device", "emulated")
        axes.axhline(size, color="#444444", linestyle="-" if is_own else "-.", linewidth=1.1 if is_own else 0.7)
        axes.annotate(
            f"{name}\n{format_bytes(size * GIB)}" if is_own else name,
            (1.0, size),
            xycoords=axes.get_yaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=7,
            fontweight="bold" if is_own else "normal",
            va="center",
        )
