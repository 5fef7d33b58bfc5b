"""``infsa-bench report``: render a run from its records, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.max_resolution import summarize_search
from infsa_bench.analyze.run import Run, load_run
from infsa_bench.errors import SpecError
from infsa_bench.report.describe import describe_run, energy_remarks, flag_remarks
from infsa_bench.report.figures import write_figures
from infsa_bench.report.max_resolution import (
    describe_search,
    render_search_csv,
    render_search_markdown,
    render_search_terminal,
)
from infsa_bench.report.table import blocks, render_csv, render_markdown, render_terminal
from infsa_bench.store import Search


def report_run(path: Path, console: Console) -> tuple[Path, ...]:
    """Print the tables of the run in ``path``, write its report beside ``results``; say and return where.

    Raises:
        SpecError: no run there, one without records, or one whose energy was made up.
        SchemaError: a file of it cannot be read.
    """
    run = load_run(path)
    if run.superseded:
        lines = "1 record" if run.superseded == 1 else f"{run.superseded} records"
        console.print(f"{lines} superseded by a later one of the same case", highlight=False)
    if run.manifest.search is not None:
        return _report_search(run, run.manifest.search, console)
    if not run.rows:
        raise SpecError(f"{path} has no records yet")
    print_tables(run, console)
    return _announce(write_report(run), console)


def _report_search(run: Run, search: Search, console: Console) -> tuple[Path, ...]:
    """Print and write the report of a search for the largest resolution; return where."""
    rows = summarize_search(search, run.records)
    limit_bytes = run.manifest.settings.memory_limit_bytes
    console.print(render_search_terminal(f"{run.name}: largest resolution that fits", rows))
    for line in describe_search(run):
        console.print(line, markup=False, highlight=False)
    folder = run.reports_path
    markdown, table = folder / "max_resolution.md", folder / "max_resolution.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        markdown.write_text(render_search_markdown(run, rows), encoding="utf-8", errors="backslashreplace")
        table.write_text(render_search_csv(rows, limit_bytes), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SpecError(f"cannot write the report to {folder}: {error}") from error
    return _announce([("table", markdown), ("data", table)], console)


def _announce(files: Sequence[tuple[str, Path]], console: Console) -> tuple[Path, ...]:
    """Say which files a report has, and return them."""
    for name, file in files:
        console.print(f"{name}: {file}", markup=False, highlight=False, soft_wrap=True)
    return tuple(file for _, file in files)


def print_tables(run: Run, console: Console) -> None:
    """Print one table a block, where it was measured, and why cells have no number."""
    for title, block in blocks(run.rows):
        console.print(render_terminal(f"{run.name}: {title}", block))
        for remark in flag_remarks(block):
            console.print(remark, markup=False, highlight=False)
    for line in describe_run(run, run.rows):
        console.print(line, markup=False, highlight=False)
    for remark in energy_remarks(run.rows):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    for row in run.rows:
        if row.status not in ("ok", "skipped"):
            console.print(f"{row.case.cell}: {row.status}: {row.reason}", markup=False, highlight=False, soft_wrap=True)
    console.print("how `reference` departs from the published code: infsa-bench list, or the report's table")
    skipped = sum(row.status == "skipped" for row in run.rows)
    if skipped:
        console.print(f"{skipped} cells skipped; why stands in the report's table")


def write_report(run: Run) -> list[tuple[str, Path]]:
    """Write table.md, table.csv and the figures into the run's reports folder; return what they are and where.

    Raises:
        SpecError: the folder cannot be written.
        SchemaError: a power trace cannot be read.
    """
    folder = run.reports_path
    markdown, table = folder / "table.md", folder / "table.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        markdown.write_text(render_markdown(run, run.rows), encoding="utf-8", errors="backslashreplace")
        table.write_text(render_csv(run.rows), encoding="utf-8", errors="backslashreplace")
        figures = write_figures(run, folder)
    except OSError as error:
        raise SpecError(f"cannot write the report to {folder}: {error}") from error
    return [("table", markdown), ("data", table), *(("picture", file) for file in figures)]
