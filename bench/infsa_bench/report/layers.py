"""Single layers as a table."""

from __future__ import annotations

import statistics

from infsa_bench.layers import LayerRun, LayerTimes
from infsa_bench.report.describe import describe_environment
from infsa_bench.report.grid import escape_markdown
from infsa_bench.report.units import format_bytes, format_seconds

REPORT = "table.md"

COLUMNS = ("layer", "heads", "tokens", "reference", "fast", "reference / fast", "each round", "memory of a forward")


def layer_line(layer: LayerTimes) -> str:
    """Return one layer in a line for a terminal."""
    cells = _cells(layer)
    return f"{cells[0]}, {cells[1]} heads, {cells[2]} tokens: {cells[3]} / {cells[4]} = {cells[5]} ({cells[6]})"


def render_layers(run: LayerRun) -> str:
    """Return the run as Markdown: where it ran, then one row a layer."""
    lines = ["# Attention layers, reference beside fast", ""]
    lines.append(f"- {escape_markdown(describe_environment(run.environment))}")
    lines += [
        f"- {run.created_utc}; width {run.embed_dim}, batch 1, {run.precision}, inference; medians of {run.rounds} "
        "rounds in which both take turns, their ratio, and the ratios of single rounds",
        "- a layer is the mixer and the host's dense after it (fast: multiplied into its output projection); "
        "memory is what the process grew by",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
    ]
    lines += ["| " + " | ".join(escape_markdown(cell) for cell in _cells(layer)) + " |" for layer in run.layers]
    return "\n".join(lines) + "\n"


def _cells(layer: LayerTimes) -> tuple[str, ...]:
    speedups = layer.speedups
    options = "".join(f" {name}={value}" for name, value in layer.options)
    memory = [_memory(size) for size in (layer.reference_peak_bytes, layer.fast_peak_bytes)]
    return (
        layer.mechanism + options,
        str(layer.num_heads),
        f"{layer.tokens:,}",
        format_seconds(statistics.median(layer.reference_seconds)),
        format_seconds(statistics.median(layer.fast_seconds)),
        f"{layer.speedup:.2f}",
        f"{min(speedups):.2f} .. {max(speedups):.2f}",
        " / ".join(memory),
    )


def _memory(size: int | None) -> str:
    return "unknown" if size is None else format_bytes(size)
