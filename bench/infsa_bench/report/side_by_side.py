"""Several runs in one table: where they differ, and each cell in all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.protocol import Protocol
from infsa_bench.quoting import one_line
from infsa_bench.report.describe import describe_environment
from infsa_bench.report.headline import Finding
from infsa_bench.report.run_sections import FILTERS, environment_facts, row_filters
from infsa_bench.report.sections import Cell, Column, Row, Section, Table, text_table
from infsa_bench.report.table import row_cells
from infsa_bench.report.units import format_bytes, significant
from infsa_bench.spec import Case

ABSENT = "not in this run"
AXES: Mapping[str, Callable[[Case], str]] = {
    "mechanism": lambda case: case.mechanism,
    "implementation": lambda case: case.implementation + "".join(f" {key}={value}" for key, value in case.options),
    "resolution": lambda case: str(case.resolution),
    "config": lambda case: case.config,
    "phase": lambda case: case.phase,
    "precision": lambda case: case.precision,
    "execution": lambda case: case.execution,
    "batch": lambda case: f"batch {case.batch_size}",
}
ALWAYS = frozenset({"mechanism", "implementation", "resolution"})


def run_letter(index: int) -> str:
    """Return the letter that stands for a run beside others: A, B, ..., Z, AA, ..."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def comparison_sections(runs: Sequence[Run]) -> list[Section]:
    """Return what a page says of several runs together; ratios are to the first one."""
    return [_headline(runs), _what_and_where(runs), _differences(runs), _joined(runs)]


def _headline(runs: Sequence[Run]) -> Section:
    findings = [_against_first(runs[0], run, run_letter(index)) for index, run in enumerate(runs) if index]
    remark = "What each run found by itself stands in its own part below, with the intervals of single cells."
    return Section(title="Headline", findings=tuple(findings), remarks=(remark,))


def _against_first(first: Run, run: Run, letter: str) -> Finding:
    """How much longer or shorter a run's cells take than the same cells of the first."""
    theirs, ours = _by_cell(first), _by_cell(run)
    ratios = {}
    for cell, row in ours.items():
        other = theirs[cell].latency_seconds if cell in theirs else None
        if row.latency_seconds is not None and other is not None:
            ratios[cell] = row.latency_seconds / other
    subject = one_line(f"{letter}: {run.name} against A: {first.name}")
    alone = (_only_here(ours, theirs, letter, "A"), _only_here(theirs, ours, "A", letter))
    sentences = [sentence for sentence in alone if sentence]
    if not ratios:
        sentences.insert(0, "No cell has a number in both.")
        return Finding(subject=subject, figure="", figure_meaning="", figure_range="", sentences=tuple(sentences))
    least, most = (choose(ratios, key=ratios.__getitem__) for choose in (min, max))
    ends = f"Shortest beside A: {least}, {significant(ratios[least])}; longest: {most}, {significant(ratios[most])}."
    sentences.insert(0, ends)
    return Finding(
        subject=subject,
        figure=f"{significant(statistics.median(ratios.values()))}x",
        figure_meaning=f"the latency of A: median over the {len(ratios)} cells that have a number in both",
        figure_range=f"{significant(ratios[least])} .. {significant(ratios[most])} from cell to cell",
        sentences=tuple(map(one_line, sentences)),
    )


def _only_here(ours: Mapping[str, SummaryRow], theirs: Mapping[str, SummaryRow], letter: str, other: str) -> str:
    has_number = {cell for cell, row in ours.items() if row.latency_seconds is not None}
    found = [cell for cell in has_number if cell not in theirs or theirs[cell].latency_seconds is None]
    if not found:
        return ""
    cells = "1 cell has" if len(found) == 1 else f"{len(found)} cells have"
    return f"{cells} a number in {letter} only, not in {other}."


def _what_and_where(runs: Sequence[Run]) -> Section:
    facts = []
    for index, run in enumerate(runs):
        protocol = run.manifest.settings.protocol
        measured = sum(row.status == "ok" for row in run.rows)
        where = " / ".join(map(describe_environment, run.manifest.environments.values()))
        text = f"{where}; protocol {protocol.name}, {_processes(protocol)}; begun {run.manifest.created_utc}; "
        facts.append((f"{run_letter(index)}: {run.name}", f"{text}{measured} of {len(run.rows)} cells have a number"))
    return Section(title="What was run where", facts=tuple(facts))


def _processes(protocol: Protocol) -> str:
    return "1 process" if protocol.replicates == 1 else f"{protocol.replicates} processes"


def _differences(runs: Sequence[Run]) -> Section:
    facts = [_facts(run) for run in runs]
    names = dict.fromkeys(name for found in facts for name in found)
    differing = []
    for name in names:
        values = [found.get(name, "") for found in facts]
        if len(set(values)) > 1:
            differing.append((name, *values))
    title = "Differences of environment"
    if not differing:
        return Section(title=title, paragraphs=("Machine, versions and settings are the same.",))
    return Section(
        title=title,
        tables=(text_table("What differs", ("", *map(run_letter, range(len(runs)))), differing),),
        remarks=(f"{len(names) - len(differing)} other facts and settings are the same; each run lists its own.",),
    )


def _facts(run: Run) -> dict[str, str]:
    """Facts about a run's environments, those of several together, and its settings."""
    found: dict[str, list[str]] = {}
    for environment in run.manifest.environments.values():
        for name, text in environment_facts(environment).items():
            found.setdefault(name, []).append(text)
    facts = {name: " / ".join(dict.fromkeys(texts)) for name, texts in found.items()}
    settings = run.manifest.settings
    protocol = settings.protocol
    facts["protocol"] = f"{protocol.name}, {_processes(protocol)}"
    facts["seed"] = str(settings.seed)
    facts["energy preset"] = settings.energy
    facts["emulated memory"] = "none" if settings.memory_limit_bytes is None else str(settings.memory_limit_bytes)
    return facts


def _joined(runs: Sequence[Run]) -> Section:
    by_cell = [_by_cell(run) for run in runs]
    cells: dict[str, SummaryRow] = {}
    for found in by_cell:
        for cell, row in found.items():
            cells.setdefault(cell, row)
    ordered = sorted(cells.items(), key=lambda item: (item[1].case.config, item[1].case.phase, item[1].case.resolution))
    # What is the same in every row stands above them.
    axes = {name: [get(row.case) for _, row in ordered] for name, get in AXES.items()}
    common = [values[0] for name, values in axes.items() if name not in ALWAYS and len(set(values)) == 1]
    names = [name for name, values in axes.items() if name in ALWAYS or len(set(values)) > 1]
    has_energy = any(row.joules_per_image is not None for found in by_cell for row in found.values())
    rows = []
    for cell, row in ordered:
        rows.append(_joined_row(row, [found.get(cell) for found in by_cell], names, has_energy=has_energy))
    table = Table(
        caption=", ".join(["Each cell in all runs", *common]),
        columns=(*(Column(title=name, is_number=name == "resolution") for name in names), *_columns(runs, has_energy)),
        rows=tuple(rows),
    )
    remark = "Ratio: latency over that of A; in brackets with both 95 % intervals at their ends, where both have one."
    return Section(title="Side by side", filters=FILTERS, tables=(table,), remarks=(remark,))


def _by_cell(run: Run) -> dict[str, SummaryRow]:
    """The rows of a run by cell; of a cell that ran in two environments the one with a number."""
    found: dict[str, SummaryRow] = {}
    for row in sorted(run.rows, key=lambda row: row.status != "ok"):
        found.setdefault(row.case.cell, row)
    return {row.case.cell: found[row.case.cell] for row in run.rows}


def _columns(runs: Sequence[Run], has_energy: bool) -> list[Column]:
    columns = []
    for index, run in enumerate(runs):
        letter = run_letter(index)
        names = [f"{letter} latency", f"{letter} 95 % interval", *([f"{letter} / A"] if index else [])]
        columns += [Column(title=name, group=f"{letter}: {run.name}", is_number=True) for name in names]
    for group in (*(["J/image"] if has_energy else []), "peak memory"):
        columns += [Column(title=run_letter(index), group=group, is_number=True) for index in range(len(runs))]
    return columns


def _joined_row(row: SummaryRow, found: Sequence[SummaryRow | None], axes: Sequence[str], *, has_energy: bool) -> Row:
    cells = []
    for name in axes:
        text = AXES[name](row.case)
        cells.append(Cell(text=text, value=float(text) if name == "resolution" else None))
    for index, each in enumerate(found):
        cells += _times(each, None if index == 0 else (found[0],))
    if has_energy:
        cells += map(_energy, found)
    for each in found:
        size = None if each is None else each.peak_memory_bytes
        cells.append(Cell(text="" if size is None else format_bytes(size), value=None if size is None else float(size)))
    statuses = [ABSENT if each is None else each.status for each in found]
    status = "ok in all" if set(statuses) == {"ok"} else "without a number in some"
    return Row(cells=tuple(cells), filters=row_filters(row) | {"status": status}, is_lacking="ok" not in statuses)


def _energy(row: SummaryRow | None) -> Cell:
    """Joules per image without the reason for low confidence, which the run's own table gives."""
    if row is None:
        return Cell(text="")
    return Cell(text=row_cells(row)["J/image"].partition(" (")[0], value=row.joules_per_image)


def _times(row: SummaryRow | None, others: tuple[SummaryRow | None] | None) -> list[Cell]:
    """Latency, its interval, and, beside another run's row, the ratio to it."""
    if row is None or row.latency_seconds is None:
        return [Cell(text=ABSENT if row is None else row.status), *[Cell(text="")] * (1 if others is None else 2)]
    texts = row_cells(row)
    # Why there is no interval; the range of the times stands in the run's own table.
    interval = texts["95 % interval"].partition(";")[0]
    cells = [Cell(text=texts["latency"], value=row.latency_seconds), Cell(text=interval, value=row.latency_low_seconds)]
    return cells if others is None else [*cells, _ratio(row, others[0])]


def _ratio(row: SummaryRow, first: SummaryRow | None) -> Cell:
    """The latency of a run over that of the first, and between what it lies if both intervals hold."""
    if first is None or first.latency_seconds is None or row.latency_seconds is None:
        return Cell(text="no number in A")
    ratio = row.latency_seconds / first.latency_seconds
    text = significant(ratio)
    ends = (row.latency_low_seconds, row.latency_high_seconds, first.latency_low_seconds, first.latency_high_seconds)
    low, high, first_low, first_high = ends
    if low is not None and high is not None and first_low is not None and first_high is not None:
        text += f" ({significant(low / first_high)} .. {significant(high / first_low)})"
    return Cell(text=text, value=ratio)
