"""Latency, and energy of an image, over the image's side."""

from __future__ import annotations

from matplotlib.figure import Figure

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.figures.curves import Quantity, render_curves
from infsa_bench.report.figures.selection import blocks_with
from infsa_bench.report.figures.styles import failure_of, in_plain_style
from infsa_bench.report.figures.words import describe_panels
from infsa_bench.report.units import format_joules, format_seconds

SIZE_LABEL = "image side (pixels)"

LATENCY = Quantity(
    size_label=SIZE_LABEL,
    size=lambda row: float(row.case.resolution),
    label="latency, one batch (seconds, median)",
    value=lambda row: row.latency_seconds,
    interval=lambda row: (row.latency_low_seconds, row.latency_high_seconds),
    hollow=lambda row: bool(row.launch_bound),
    hollow_meaning="hollow: launch-bound",
    lacking=lambda row: ("N", "no latency") if row.status == "ok" else failure_of(row),
)
ENERGY = Quantity(
    size_label=SIZE_LABEL,
    size=lambda row: float(row.case.resolution),
    label="energy (joules per image, mean)",
    value=lambda row: row.joules_per_image,
    interval=lambda row: (row.joules_per_image_low, row.joules_per_image_high),
    hollow=lambda row: row.energy_status == "measured_low_confidence",
    hollow_meaning="hollow: low confidence",
    lacking=lambda row: ("N", "energy not measured") if row.status == "ok" else failure_of(row),
)


@in_plain_style
def render_latency_vs_resolution(run: Run) -> Figure | None:
    """Latency against resolution, log-log, one panel a block of comparable rows, one line a mechanism.

    A cell without a number stands as a letter at its resolution, in the strip on top: O out of memory, T timeout,
    S skipped, and so on (the panel says it). Bars are 95 % intervals where there are any; hollow points are
    launch-bound: the host, not the device, is what takes the time there.
    """
    panels = blocks_with(run.rows)
    return render_curves(LATENCY, panels) if panels else None


@in_plain_style
def render_energy_vs_resolution(run: Run) -> Figure | None:
    """Joules per image in the same way, of the blocks in which any cell has them; hollow is of low confidence."""
    panels = _energy_panels(run)
    return render_curves(ENERGY, panels) if panels else None


def describe_latency_vs_resolution(run: Run) -> str:
    """Say what the figure of latency shows, with the fastest and the slowest of its first panel."""
    return describe_panels(
        "Latency of one batch against image side",
        blocks_with(run.rows),
        value=LATENCY.value,
        shown=format_seconds,
    )


def describe_energy_vs_resolution(run: Run) -> str:
    """Say what the figure of energy shows, with the least and the most of its first panel."""
    return describe_panels(
        "Energy of an image against image side",
        _energy_panels(run),
        value=ENERGY.value,
        shown=lambda joules: f"{format_joules(joules, None)} an image",
    )


def _energy_panels(run: Run) -> list[tuple[str, list[SummaryRow]]]:
    return blocks_with(run.rows, lambda row: row.joules_per_image is not None)
