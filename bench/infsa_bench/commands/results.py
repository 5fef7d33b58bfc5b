"""``infsa-bench results``: what the folder of results holds, and what no GPU has had the time for."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from infsa_bench.errors import SpecError
from infsa_bench.files import write_text
from infsa_bench.report.reference_runs import render_results

PAGE = "README.md"


def results(folder: Path, console: Console) -> None:
    """Write the page of the folder anew.

    Raises:
        SpecError: there is no such folder, or the page cannot be written.
        SchemaError: the state of a reference run cannot be read.
    """
    if not folder.is_dir():
        raise SpecError(f"{folder} is no folder of results")
    write_text(folder / PAGE, render_results(folder))
    console.print(f"results: {folder / PAGE}", markup=False, highlight=False, soft_wrap=True)
