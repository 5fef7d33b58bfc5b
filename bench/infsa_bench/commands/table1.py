"""``infsa-bench table1``: the paper's Table 1, measured, side by side with the paper or another run."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.ablation import DEFAULT, OTHER, OTHER_CHOICE, AblationRow, ablation
from infsa_bench.analyze.claims import PROPOSED
from infsa_bench.analyze.run import Run, load_run
from infsa_bench.analyze.sides import Side, paper_side, sides_of
from infsa_bench.analyze.table1 import STRESS_CELLS, TABLE_CELLS, Table1, table1
from infsa_bench.commands.fleet import run_on_each, words_for_table
from infsa_bench.commands.options import SweepRequest, parse_implementations
from infsa_bench.commands.report import announce, write_report
from infsa_bench.commands.resuming import INTERRUPTED, say_how_to_go_on
from infsa_bench.commands.sharding import say_nothing_to_do
from infsa_bench.commands.sweep import cases_of_axes, measure
from infsa_bench.errors import EmptyShardError, SpecError, UnknownNameError
from infsa_bench.paper import ABLATION_BATCH_SIZE, ABLATION_CONFIG, ABLATION_RESOLUTION, published_ablation
from infsa_bench.report.ablation import (
    ablation_csv,
    ablation_grids,
    ablation_json,
    ablation_latex,
    ablation_markdown,
    describe_ablation,
)
from infsa_bench.report.grid import grid_terminal
from infsa_bench.report.table1_forms import print_table1, table1_csv, table1_json, table1_latex, table1_markdown
from infsa_bench.spec import PHASES, Case, parse_names
from infsa_bench.store import reports_path
from infsa_models.options import options_of

PAPER = "paper"
DEFAULT_PHASES = "infer,train"
TERMINAL = "term"
ABLATION_IMPLEMENTATIONS = ("reference", "fast")
"""Whatever the device: only one of them has another activation than relu."""

FORMS: Mapping[str, Callable[[Sequence[Table1]], str]] = {
    "md": table1_markdown,
    "csv": table1_csv,
    "tex": table1_latex,
    "json": table1_json,
}
ABLATION_FORMS: Mapping[str, Callable[[Sequence[AblationRow]], str]] = {
    "md": ablation_markdown,
    "csv": ablation_csv,
    "tex": ablation_latex,
    "json": ablation_json,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table1Request:
    """The options as typed. ``run`` is a folder or ``paper``; ``sweep`` says how to measure, if ``is_measured``."""

    run: str | None
    against: str
    form: str
    is_ablation: bool
    is_measured: bool
    sweep: SweepRequest


def print_table(request: Table1Request, console: Console) -> int:
    """Measure what the table needs, if that is asked for, and print it; return the exit code.

    Raises:
        SpecError: no such run or form, or a run without any cell of the table.
        SchemaError, RunLockedError, SweepStoppedError: as ``sweep``.
    """
    if request.form not in (*FORMS, TERMINAL):
        raise UnknownNameError("format", request.form, (*FORMS, TERMINAL))
    theirs = _theirs(request.against)
    if not request.is_measured:
        _refuse_measuring_options(request.sweep)
        if request.run is None:
            raise SpecError("name a run, or paper for the published numbers, or add --measure")
        _print(request, request.run, theirs, console)
        return 0
    if request.run == PAPER:
        raise SpecError(
            "the paper's cells were measured by its authors: name a folder for --measure, e.g. results/mine"
        )
    out = Path(request.run) if request.run else _default_out(request.sweep.shard)
    words = request.sweep.words if request.run else (*request.sweep.words, str(out))
    sweep_request = replace(request.sweep, out=out, words=words)
    if sweep_request.per_accelerator:
        return _print_fleet(request, sweep_request, out, console)
    # What is printed besides the table must not get into a file that it is written to.
    progress = console if request.form == TERMINAL else Console(stderr=True)
    try:
        measured = measure(sweep_request, progress, ablation_cases if request.is_ablation else table_cases)
    except EmptyShardError as error:
        return say_nothing_to_do(progress, error)
    if sweep_request.dry_run:
        return 0
    if measured is None:
        return INTERRUPTED
    found = load_run(measured)
    announce(write_report([found], found.reports_path), progress)
    _print(request, str(measured), theirs, console)
    return 0


def _print_fleet(request: Table1Request, sweep: SweepRequest, out: Path, console: Console) -> int:
    """Measure and print the table on every accelerator type; return the exit code."""
    if request.form != TERMINAL:
        raise SpecError(f"--format {request.form}: measure on each accelerator type first, then print the run of each")
    code, folders = run_on_each(sweep, out, words_for_table(sweep.words), console)
    # A shard for which there were no cells has none.
    folders = [folder for folder in folders if folder.exists()]
    if code == INTERRUPTED:
        say_how_to_go_on(console, sweep.program, sweep.words, out, out)
    elif code == 0 and not sweep.dry_run and len(folders) > 1:
        announce(write_report([load_run(folder) for folder in folders], reports_path(out)), console)
    return code


def _refuse_measuring_options(sweep: SweepRequest) -> None:
    """Refuse what says how to measure where nothing is measured: it would be taken for a choice of what to print."""
    defaults = SweepRequest(phase=DEFAULT_PHASES)
    given = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(SweepRequest)
        if field.name not in ("program", "words") and getattr(sweep, field.name) != getattr(defaults, field.name)
    ]
    if given:
        raise SpecError(f"{', '.join(given)}: only together with --measure; a table prints all that its run holds")


def table_cases(request: SweepRequest, device_type: str, replicates: int) -> tuple[Case, ...]:
    """Return exactly the cells that the table and its stress test need, in the phases that are asked for."""
    phases = parse_names(request.phase, "phase", PHASES)
    models: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for config, mechanism, phase, resolution in (*TABLE_CELLS, *STRESS_CELLS):
        if phase in phases:
            models.setdefault((phase, resolution), []).append((config, mechanism))
    found: list[Case] = []
    for (phase, resolution), wanted in models.items():
        axes = replace(
            request,
            res=str(resolution),
            phase=phase,
            config=",".join(dict.fromkeys(config for config, _ in wanted)),
            mechanisms=",".join(dict.fromkeys(mechanism for _, mechanism in wanted)),
        )
        found += cases_of_axes(axes, device_type, replicates)
    # Each replicate is one pass over all cells.
    return tuple(sorted(found, key=lambda case: case.replicate))


def ablation_cases(request: SweepRequest, device_type: str, replicates: int) -> tuple[Case, ...]:
    """Return the cells of the ablation: the default, and each value by itself."""
    implementations = parse_implementations(request.impl) or ABLATION_IMPLEMENTATIONS
    values: dict[str, list[str]] = {}
    for published in published_ablation():
        value = OTHER_CHOICE if published.value == OTHER else published.value
        if (published.parameter, value) != DEFAULT:
            values.setdefault(published.parameter, []).append(value)
    found: list[Case] = []
    for name, texts in ((None, []), *values.items()):
        # Not every implementation has every parameter.
        having = [each for each in implementations if name is None or name in options_of(PROPOSED, each)]
        if not having:
            continue
        axes = replace(
            request,
            mechanisms=PROPOSED,
            impl=",".join(having),
            config=ABLATION_CONFIG,
            res=str(ABLATION_RESOLUTION),
            batch_size=str(ABLATION_BATCH_SIZE),
            option=() if name is None else (f"{name}={','.join(texts)}",),
        )
        found += cases_of_axes(axes, device_type, replicates)
    return tuple(sorted(found, key=lambda case: case.replicate))


def tables_of(run: Run, theirs: Sequence[Side]) -> list[Table1]:
    """Return a table for each side of the run, against the most similar one of ``theirs``.

    Raises:
        SpecError: the run has no cell of the table.
    """
    return [table1(side, _most_similar(side, theirs)) for side in sides_of(run)]


def _most_similar(side: Side, theirs: Sequence[Side]) -> Side:
    def alike(other: Side) -> tuple[bool, bool, int]:
        shared = set(side.precisions) & set(other.precisions)
        return side.implementation == other.implementation, side.execution == other.execution, len(shared)

    return max(theirs, key=alike)


def _theirs(name: str) -> list[Side]:
    return [paper_side()] if name == PAPER else sides_of(load_run(name))


def _print(request: Table1Request, name: str, theirs: Sequence[Side], console: Console) -> None:
    if request.is_ablation:
        _print_ablation(request, name, console)
        return
    tables = [table1(paper_side(), side) for side in theirs] if name == PAPER else tables_of(load_run(name), theirs)
    if request.form == TERMINAL:
        print_table1(tables, console)
    else:
        _write(FORMS[request.form](tables), console)


def _print_ablation(request: Table1Request, name: str, console: Console) -> None:
    if name == PAPER or request.against != PAPER:
        raise SpecError("--ablation sets a run beside the paper: name the run, and no other --against")
    rows = ablation(load_run(name))
    if request.form != TERMINAL:
        _write(ABLATION_FORMS[request.form](rows), console)
        return
    for grid in ablation_grids(rows):
        console.print(grid_terminal(grid))
        console.print()
    for line in describe_ablation(rows):
        console.print(line, markup=False, highlight=False)


def _write(text: str, console: Console) -> None:
    """Print text as it is: nothing wrapped, no colours."""
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def _default_out(shard: str | None) -> Path:
    which = "" if shard is None else f"-shard-{shard.replace('/', '-of-')}"
    return Path("results") / f"table1-{datetime.datetime.now():%Y%m%d-%H%M%S}{which}"
