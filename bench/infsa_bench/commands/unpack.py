"""``infsa-bench unpack``: a reference run that came in parts, laid down and rendered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from infsa_bench.commands.report import report_run
from infsa_bench.commands.repository import commit_here
from infsa_bench.errors import SpecError
from infsa_bench.files import write_text
from infsa_bench.reference.facts import INSTRUMENTS, load_facts
from infsa_bench.reference.parts import unpack
from infsa_bench.reference.state import load_reference_run, source_digest, write_reference_run
from infsa_bench.report.instruments import describe_instruments
from infsa_bench.report.reference_runs import render_stages
from infsa_bench.store import MANIFEST, RECORDS, reports_path

PAGE = "README.md"


def unpack_run(parts: Path, out: Path, console: Console) -> None:
    """Unpack the parts in a folder into ``out``, and render what they hold.

    Where the files of this checkout are those that ran on the GPU's machine, which may have had no repository, their
    commit is written down.

    Raises:
        SpecError: no parts, ``out`` is taken, or something cannot be written.
        SchemaError: what they hold cannot be read.
    """
    unpack(parts, out)
    run = load_reference_run(out)
    digest, commit = source_digest(), commit_here()
    if digest in run.commits and run.commits[digest] is None and commit is not None:
        run = replace(run, commits={**run.commits, digest: commit})
        try:
            write_reference_run(out, run)
        except OSError as error:
            raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error
    reports = reports_path(out)
    rendered = []
    for folder in sorted(file.parent for file in out.glob(f"*/{MANIFEST}")):
        # A sweep that was interrupted over its first cell has nothing to show.
        if (folder / RECORDS).is_file() and (folder / RECORDS).stat().st_size:
            report_run(folder, console, reports / folder.name)
            rendered.append(folder.name)
    facts = load_facts(out / INSTRUMENTS)
    lines = [f"# Reference run on {run.device_name}", "", render_stages(run, out)]
    lines += [f"- [{name}]({name}/{_page_of(reports / name)})" for name in rendered]
    if facts is not None:
        lines += ["", "## Instruments", "", *(f"- {name}: {found}" for name, found in describe_instruments(facts))]
    write_text(reports / PAGE, "\n".join(lines) + "\n")
    console.print(f"run: {out}\nreports: {reports / PAGE}", markup=False, highlight=False, soft_wrap=True)


def _page_of(report: Path) -> str:
    return "report.md" if (report / "report.md").is_file() else "max_resolution.md"
