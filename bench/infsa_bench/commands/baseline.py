"""``infsa-bench baseline``: what a comparison needs of a run, in one small file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.baseline import Baseline, load_side, write_baseline
from infsa_bench.analyze.outcomes import status
from infsa_bench.report.describe import describe_environment, describe_memory_limit, describe_protocol


def save_baseline(run: Path, out: Path, console: Console) -> None:
    """Write the baseline of the run in ``run``.

    Raises:
        SpecError: no run there, or the file cannot be written.
        SchemaError: a file of the run cannot be read.
    """
    baseline = load_side(run)
    write_baseline(out, baseline)
    console.print(f"baseline: {out}", markup=False, highlight=False, soft_wrap=True)


def show_baseline(file: Path, console: Console) -> None:
    """Print what a baseline, or a run, holds.

    Raises:
        SpecError, SchemaError: as :func:`load_side`.
    """
    for line in describe_baseline(load_side(file)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def describe_baseline(baseline: Baseline) -> list[str]:
    """Return a baseline in words, a line each."""
    lines = [f"{baseline.name}, of {baseline.created_utc}"]
    lines += [describe_environment(found) for found in baseline.environments.values()]
    lines.append(f"{describe_protocol(baseline.settings.protocol)}; seed {baseline.settings.seed}")
    if baseline.settings.memory_limit_bytes is not None:
        lines.append(describe_memory_limit(baseline.settings.memory_limit_bytes))
    if baseline.cells:
        statuses = Counter(map(status, baseline.cells)).most_common()
        counts = ", ".join(f"{count} {kind}" for kind, count in statuses)
        replicates = sorted({len(cell.replicates) for cell in baseline.cells})
        lines.append(f"{len(baseline.cells)} cells ({counts}), {' or '.join(map(str, replicates))} replicates each")
    if baseline.limits:
        lines.append(f"{len(baseline.limits)} searches for the largest resolution")
    return lines
