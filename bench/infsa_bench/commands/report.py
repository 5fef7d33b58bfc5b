"""``infsa-bench report``: render a run from its records, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.max_resolution import summarize_search
from infsa_bench.analyze.run import Run, load_run
from infsa_bench.analyze.table1 import tables_beside_paper
from infsa_bench.errors import SpecError
from infsa_bench.report.describe import describe_run, energy_remarks, flag_remarks
from infsa_bench.report.figures import draw_figures, write_figures
from infsa_bench.report.max_resolution import (
    describe_search,
    render_search_csv,
    render_search_markdown,
    render_search_terminal,
)
from infsa_bench.report.page import render_page
from infsa_bench.report.paper_sections import paper_sections
from infsa_bench.report.pull_request import render_pull_request
from infsa_bench.report.run_sections import file_name
from infsa_bench.report.side_by_side import run_letter
from infsa_bench.report.table import blocks, render_csv, render_markdown, render_terminal
from infsa_bench.report.table1_forms import table1_markdown
from infsa_bench.search_plan import Search


def report_run(path: Path, console: Console, out: Path | None = None) -> tuple[Path, ...]:
    """Print the tables of the run in ``path``, write its report into ``out``; say and return where.

    Without ``out`` the report lies beside ``results``.

    Raises:
        SpecError: no run there, one without records, or one whose energy was made up.
        SchemaError: a file of it cannot be read.
    """
    run = load_run(path)
    folder = run.reports_path if out is None else out
    _print_superseded(run, console)
    if run.manifest.search is not None:
        return _report_search(run, run.manifest.search, folder, console)
    if not run.rows:
        raise SpecError(f"{path} has no records yet")
    print_tables(run, console)
    return announce(write_report([run], folder), console)


def report_runs(paths: Sequence[Path], out: Path | None, console: Console) -> tuple[Path, ...]:
    """Do so for one run, or write one report of several, side by side.

    Raises:
        SpecError: as :func:`report_run`, several runs without ``out``, or a search among them.
        SchemaError: a file of one of them cannot be read.
    """
    if len(paths) == 1:
        return report_run(paths[0], console, out)
    if out is None:
        raise SpecError("several runs have one report: name its folder, e.g. -o reports/a-vs-b")
    runs = [load_run(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if run.manifest.search is not None:
            raise SpecError(f"{path} is a search for the largest resolution, which stands beside nothing")
        if not run.rows:
            raise SpecError(f"{path} has no records yet")
        _print_superseded(run, console)
    return announce(write_report(runs, out), console)


def _print_superseded(run: Run, console: Console) -> None:
    if run.superseded:
        lines = "1 record" if run.superseded == 1 else f"{run.superseded} records"
        console.print(f"{lines} superseded by a later one of the same case", highlight=False)


def _report_search(run: Run, search: Search, folder: Path, console: Console) -> tuple[Path, ...]:
    """Print and write the report of a search for the largest resolution; return where."""
    rows = summarize_search(search, run.records)
    limit_bytes = run.manifest.settings.memory_limit_bytes
    console.print(render_search_terminal(f"{run.name}: largest resolution that fits", rows))
    for line in describe_search(run):
        console.print(line, markup=False, highlight=False)
    markdown, table = folder / "max_resolution.md", folder / "max_resolution.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        markdown.write_text(render_search_markdown(run, rows), encoding="utf-8", errors="backslashreplace")
        table.write_text(render_search_csv(rows, limit_bytes), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SpecError(f"cannot write the report to {folder}: {error}") from error
    return announce([("table", markdown), ("data", table)], console)


def announce(files: Sequence[tuple[str, Path]], console: Console) -> tuple[Path, ...]:
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


def write_report(runs: Sequence[Run], folder: Path) -> list[tuple[str, Path]]:
    """Write tables, page, summary and figures of runs into ``folder``; return what they are and where.

    Of several runs the page and the summary are one; the other files have their run's name in theirs.

    Raises:
        SpecError: the folder cannot be written.
        SchemaError: a power trace cannot be read.
    """
    page, summary = folder / "index.html", folder / "report.md"
    files: list[tuple[str, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Drawn once: that is most of the time that a report takes.
        drawings = [draw_figures(run) for run in runs]
        for run, infix, drawn in zip(runs, _infixes(runs), drawings, strict=True):
            files += _write_run(run, folder, infix)
            files += [("picture", file) for file in write_figures(drawn, folder, infix)]
        beside_paper = paper_sections(runs[0]) if len(runs) == 1 else ()
        _write(page, render_page(runs, beside_paper, drawings=drawings))
        _write(summary, render_pull_request(runs))
    except OSError as error:
        raise SpecError(f"cannot write the report to {folder}: {error}") from error
    return [*files, ("page", page), ("summary", summary)]


def _write_run(run: Run, folder: Path, infix: str) -> list[tuple[str, Path]]:
    """Write what is one run's own."""
    markdown, table = folder / f"table{infix}.md", folder / f"table{infix}.csv"
    _write(markdown, render_markdown(run, run.rows))
    _write(table, render_csv(run.rows))
    files = [("table", markdown), ("data", table)]
    beside_paper, tables = folder / f"table1{infix}.md", tables_beside_paper(run)
    if tables:
        _write(beside_paper, table1_markdown(tables))
        files.append(("beside the paper", beside_paper))
    else:
        beside_paper.unlink(missing_ok=True)
    return files


def _infixes(runs: Sequence[Run]) -> list[str]:
    """What tells the files of several runs apart: their letters on the page, and their names."""
    if len(runs) == 1:
        return [""]
    return [f".{run_letter(index)}.{file_name(run)}" for index, run in enumerate(runs)]


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", errors="backslashreplace")
