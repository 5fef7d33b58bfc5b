"""``infsa-bench export``: a run, or its comparison with another, in the formats of other tools."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.baseline import load_side
from infsa_bench.analyze.compare import compare
from infsa_bench.analyze.run import Run, load_run
from infsa_bench.commands.compare import find_noise, refuse_disjoint
from infsa_bench.errors import SpecError, UnknownNameError
from infsa_bench.report.comparison import render_comparison_markdown
from infsa_bench.report.export import render_annotations, render_bencher, render_github_action_benchmark
from infsa_bench.report.table import render_csv, render_markdown

FORMATS = ("github-action-benchmark", "bencher", "step-summary", "annotations", "csv")


def export_run(path: Path, form: str, base_path: Path | None, out: Path | None, console: Console) -> None:
    """Write the run in ``path`` in another format into ``out``, or print it.

    Raises:
        SpecError: no run there, nothing in it, an unknown format, or ``out`` is missing or cannot be written.
        SchemaError: a file cannot be read.
    """
    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    if form == "annotations" and base_path is None:
        raise SpecError("annotations are of a comparison: name the other run with --base")
    if base_path is not None and form not in ("annotations", "step-summary"):
        raise SpecError(f"--base is for annotations and step-summary, not for {form}")
    run = load_run(path)
    if not run.rows and run.manifest.search is None:
        raise SpecError(f"{path} has no records yet")
    if form == "github-action-benchmark":
        if out is None:
            raise SpecError("github-action-benchmark is two files: name their folder with -o")
        for name, text in render_github_action_benchmark(run).items():
            _write(out / name, text, console)
        return
    text = _render(run, path, form, base_path)
    if out is None:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
    else:
        _write(out, text, console)


def _render(run: Run, path: Path, form: str, base_path: Path | None) -> str:
    if base_path is not None:
        base, new = load_side(base_path), load_side(path)
        comparison = compare(base, new, find_noise(None, {base_path: base, path: new}))
        refuse_disjoint(base, new, comparison)
        return render_annotations(comparison) if form == "annotations" else render_comparison_markdown(comparison)
    if form == "bencher":
        return render_bencher(run)
    return render_csv(run.rows) if form == "csv" else render_markdown(run, run.rows)


def _write(file: Path, text: str, console: Console) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SpecError(f"cannot write {file}: {error.strerror or error}") from error
    console.print(f"exported: {file}", markup=False, highlight=False, soft_wrap=True)
