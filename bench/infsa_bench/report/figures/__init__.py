"""A run as matplotlib figures, with words for who does not see them. One colour and marker a mechanism in all of them.

Every figure is a function of a run, and None where the run has nothing to show in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from infsa_bench.analyze.run import Run
from infsa_bench.report.figures.dashboard import describe_dashboard, render_dashboard
from infsa_bench.report.figures.depth import describe_depth_comparison, render_depth_comparison
from infsa_bench.report.figures.files import Drawing, draw, write_drawing
from infsa_bench.report.figures.frontier import describe_oom_frontier, render_oom_frontier
from infsa_bench.report.figures.memory import describe_memory_vs_tokens, render_memory_vs_tokens
from infsa_bench.report.figures.power_trace import describe_power_trace, render_power_trace
from infsa_bench.report.figures.resolution import (
    describe_energy_vs_resolution,
    describe_latency_vs_resolution,
    render_energy_vs_resolution,
    render_latency_vs_resolution,
)
from infsa_bench.report.figures.roofline import describe_roofline, render_roofline
from infsa_bench.report.figures.trade_off import describe_throughput_vs_energy, render_throughput_vs_energy


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureKind:
    """One of the figures of a report.

    Attributes:
        title: in plain words.
        render: the figure; None where the run has nothing to show in it.
        describe: what it shows and its main numbers, in a sentence or two: its text for who does not see it. As it
            holds names from the run's files, it is text, not HTML.
        lacking: what a run needs to have it.
    """

    title: str
    render: Callable[[Run], Figure | None]
    describe: Callable[[Run], str]
    lacking: str


FIGURES: Mapping[str, FigureKind] = {
    "latency_vs_resolution": FigureKind(
        title="Latency against resolution",
        render=render_latency_vs_resolution,
        describe=describe_latency_vs_resolution,
        lacking="needs records of a sweep",
    ),
    "energy_vs_resolution": FigureKind(
        title="Energy of an image against resolution",
        render=render_energy_vs_resolution,
        describe=describe_energy_vs_resolution,
        lacking="needs measured energy: a GPU with NVML, or a processor whose RAPL counters can be read",
    ),
    "throughput_vs_energy": FigureKind(
        title="Throughput against energy of an image",
        render=render_throughput_vs_energy,
        describe=describe_throughput_vs_energy,
        lacking="needs measured energy: a GPU with NVML, or a processor whose RAPL counters can be read",
    ),
    "dashboard": FigureKind(
        title="One resolution at a glance",
        render=render_dashboard,
        describe=describe_dashboard,
        lacking="needs a cell that ran",
    ),
    "depth_comparison": FigureKind(
        title="Four layers against twenty-four",
        render=render_depth_comparison,
        describe=describe_depth_comparison,
        lacking="needs both configs, 4L-64H and 24L-16H, at one resolution",
    ),
    "memory_vs_tokens": FigureKind(
        title="Peak memory against tokens",
        render=render_memory_vs_tokens,
        describe=describe_memory_vs_tokens,
        lacking="needs cells whose peak memory was measured",
    ),
    "oom_frontier": FigureKind(
        title="Who gets how far",
        render=render_oom_frontier,
        describe=describe_oom_frontier,
        lacking="needs records of a sweep",
    ),
    "roofline": FigureKind(
        title="Achieved rates under the roofline",
        render=render_roofline,
        describe=describe_roofline,
        lacking="needs counted operations and the device's measured peaks: a sweep without --no-peaks, or "
        "infsa-bench peaks --out",
    ),
    "power_trace": FigureKind(
        title="Power over time",
        render=render_power_trace,
        describe=describe_power_trace,
        lacking="needs a power trace, which NVML on a GPU gives and RAPL does not",
    ),
}
"""By the name of their files, in the order in which a report shows them."""


def draw_figures(run: Run) -> dict[str, Drawing | None]:
    """Return every figure as it is drawn, by the name of its files; None for those that the run has nothing for.

    Raises:
        SchemaError: a power trace cannot be read.
    """
    return {stem: draw(kind.render(run)) for stem, kind in FIGURES.items()}


def write_figures(drawings: Mapping[str, Drawing | None], folder: Path, infix: str = "") -> list[Path]:
    """Write drawings into ``folder``, each as PNG and SVG, and return the files. ``infix`` ends their names.

    Files of figures that are None are removed: they would be an earlier run's.

    Raises:
        OSError: the folder cannot be written.
    """
    return [file for stem, drawing in drawings.items() for file in write_drawing(drawing, folder, f"{stem}{infix}")]


__all__ = [
    "FIGURES",
    "Drawing",
    "FigureKind",
    "draw_figures",
    "render_dashboard",
    "render_depth_comparison",
    "render_energy_vs_resolution",
    "render_latency_vs_resolution",
    "render_memory_vs_tokens",
    "render_oom_frontier",
    "render_power_trace",
    "render_roofline",
    "render_throughput_vs_energy",
    "write_figures",
]
