"""``infsa-bench report``: render a run from its records, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.summary import SummaryRow, summarize
from infsa_bench.errors import SpecError
from infsa_bench.report.describe import describe_run, energy_remarks, flag_remarks
from infsa_bench.report.figures import write_energy_vs_resolution, write_latency_vs_resolution
from infsa_bench.report.table import blocks, render_csv, render_markdown, render_terminal
from infsa_bench.store import Run, load


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Where the parts of a report are; ``energy_figure`` is None where no cell has energy."""

    markdown: Path
    csv: Path
    latency_figure: Path
    energy_figure: Path | None


def report_run(path: Path, console: Console) -> ReportFiles:
    """Print the tables of the run in ``path``, write its report beside ``results`` and say where.

    Raises:
        SpecError: no run there, one without records, or one whose energy was made up.
        SchemaError: a file of it cannot be read.
    """
    run = load(path)
    if any(found.gpu is not None and found.gpu.is_fake for found in run.manifest.environments.values()):
        raise SpecError(f"{path} was made with the fake NVML library of the tests: not published")
    rows = summarize(run.records, memory_limit_bytes=run.manifest.settings.memory_limit_bytes)
    if not rows:
        raise SpecError(f"{path} has no records yet")
    print_tables(run, rows, console)
    files = write_report(run, rows)
    parts = [("table", files.markdown), ("data", files.csv), ("picture", files.latency_figure)]
    if files.energy_figure is not None:
        parts.append(("picture", files.energy_figure))
    for name, file in parts:
        console.print(f"{name}: {file}", markup=False, highlight=False, soft_wrap=True)
    return files


def print_tables(run: Run, rows: list[SummaryRow], console: Console) -> None:
    """Print one table a block, where it was measured, and why cells have no number."""
    for title, block in blocks(rows):
        console.print(render_terminal(f"{run.name}: {title}", block))
        for remark in flag_remarks(block):
            console.print(remark, markup=False, highlight=False)
    for line in describe_run(run, rows):
        console.print(line, markup=False, highlight=False)
    for remark in energy_remarks(rows):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    for row in rows:
        if row.status not in ("ok", "skipped"):
            console.print(f"{row.case.cell}: {row.status}: {row.reason}", markup=False, highlight=False, soft_wrap=True)
    console.print("how `reference` departs from the published code: infsa-bench list, or the report's table")
    skipped = sum(row.status == "skipped" for row in rows)
    if skipped:
        console.print(f"{skipped} cells skipped, predicted not to fit; the predictions are in the report's table")


def write_report(run: Run, rows: list[SummaryRow]) -> ReportFiles:
    """Write table.md, table.csv and the figures into the run's reports folder.

    Raises:
        SpecError: the folder cannot be written.
    """
    folder = run.reports_path
    energy_figure = folder / "energy_vs_resolution.png"
    has_energy = any(row.joules_per_image is not None for row in rows)
    files = ReportFiles(
        markdown=folder / "table.md",
        csv=folder / "table.csv",
        latency_figure=folder / "latency_vs_resolution.png",
        energy_figure=energy_figure if has_energy else None,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.markdown.write_text(render_markdown(run, rows), encoding="utf-8", errors="backslashreplace")
        files.csv.write_text(render_csv(rows), encoding="utf-8", errors="backslashreplace")
        write_latency_vs_resolution(rows, files.latency_figure)
        if has_energy:
            write_energy_vs_resolution(rows, energy_figure)
        else:
            # One of an earlier run of that name would be taken for this one's.
            energy_figure.unlink(missing_ok=True)
    except OSError as error:
        raise SpecError(f"cannot write the report to {folder}: {error}") from error
    return files
