"""The sections of a page that one run has."""

from __future__ import annotations

import dataclasses
import gzip
import re
import shlex
from collections.abc import Mapping, Sequence

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.codec import encode
from infsa_bench.machine import Environment
from infsa_bench.report.describe import describe_run, energy_remarks
from infsa_bench.report.figures import Drawing
from infsa_bench.report.flags import STATUSES, explain_flags
from infsa_bench.report.footnotes import departures, tools
from infsa_bench.report.headline import caveats, headline
from infsa_bench.report.images import data_uri, run_pictures
from infsa_bench.report.scaling import describe_scaling, scaling_grid
from infsa_bench.report.sections import Cell, Column, Download, Row, Section, Table, grid_table, text_table
from infsa_bench.report.table import RIGHT_ALIGNED, blocks, render_csv, row_cells, shown_columns
from infsa_bench.report.units import format_bytes, format_duration, significant

MAX_EMBEDDED_BYTES = 4 * 2**20
"""Records that take more than this, packed, are named only: a page should open at once."""

MOST_NAMES = 12
"""A flag names so many cells, then only how many others."""

VALUES = {
    "resolution": "resolution",
    "latency": "latency_seconds",
    "95 % interval": "latency_low_seconds",
    "vs reference": "speedup_over_reference",
    "processes": "processes",
    "images/s": "images_per_second",
    "FLOP/s": "achieved_flops_per_second",
    "roofline": "roofline_fraction",
    "J/image": "joules_per_image",
    "W": "average_power_watts",
    "peak memory": "peak_memory_bytes",
    "parameters at 224": "base_parameters",
    "parameters": "parameters",
}
"""What a column of numbers is sorted by: a field of the row."""

DETAILS = frozenset({"tokens", "processes", "FLOP/s", "roofline", "W", "parameters at 224", "parameters"})
FILTERS = ("mechanism", "implementation", "config", "phase", "status")

SPELLINGS = {
    word.lower(): word for word in ("CPU", "CUDA", "cuDNN", "ECC", "MIG", "NVML", "PCI", "SM", "TF32", "UUID", "VBIOS")
}
"""Words of the names of facts that are not written in small letters."""

RESULTS = "Results"
EXPLANATIONS = ("Latency", "images/s", "95 %", "GPU time", "launch_bound", "FLOP/s", "roofline")
"""How the lines begin that say what a column means, not what was done."""


def run_sections(run: Run, drawings: Mapping[str, Drawing | None]) -> list[Section]:
    """Return what a page says of a run, the headline first."""
    rows = run.rows
    described = [_fact(line) for line in describe_run(run, rows)]
    explained = tuple(fact for fact in described if fact[0].startswith(EXPLANATIONS))
    return [
        Section(title="Headline", findings=tuple(headline(run)), remarks=tuple(caveats(run))),
        Section(title="What was run where", facts=tuple(fact for fact in described if fact not in explained)),
        Section(title="Figures", pictures=tuple(run_pictures(run, drawings))),
        Section(
            title=RESULTS,
            filters=FILTERS,
            tables=tuple(result_table(title, block, rows) for title, block in blocks(rows)),
        ),
        *_growth(rows),
        Section(title="How to read the numbers", facts=explained, is_folded=True),
        *_warnings(run),
        *_departures(rows),
        Section(title="Environment", tables=(environment_table(run),)),
        _reproduction(run),
        Section(title="Downloads", downloads=tuple(downloads(run))),
    ]


def _growth(rows: Sequence[SummaryRow]) -> list[Section]:
    """How time and memory grow, where any exponent could be fitted."""
    grid = scaling_grid(rows)
    if not grid.rows:
        return []
    return [Section(title="How time and memory grow", tables=(grid_table(grid),), remarks=tuple(describe_scaling()))]


def result_table(title: str, block: Sequence[SummaryRow], rows: Sequence[SummaryRow]) -> Table:
    """Return a block of comparable rows, with the columns that any of ``rows`` has something for."""
    names = shown_columns(rows)
    if all(row.joules_per_image is None for row in rows):
        # One sentence of the headline says why, not every row.
        names = [name for name in names if name not in ("J/image", "W")]
    columns = [Column(title=name, is_number=name in RIGHT_ALIGNED, is_detail=name in DETAILS) for name in names]
    return Table(caption=title, columns=tuple(columns), rows=tuple(_result_row(row, names) for row in block))


def _result_row(row: SummaryRow, names: Sequence[str]) -> Row:
    texts = row_cells(row) | {"status": row.status}
    marks = row.flags
    if row.energy_status == "measured_low_confidence":
        # As a mark of its own, not in the cell: it would make the column wide.
        texts["J/image"] = texts["J/image"].partition(" (")[0]
        marks += (f"energy: {row.energy_reason}",)
    return Row(
        cells=tuple(Cell(text=texts[name], value=_value(row, name)) for name in names),
        filters=row_filters(row),
        marks=marks,
        is_lacking=row.status != "ok",
    )


def row_filters(row: SummaryRow) -> dict[str, str]:
    """Return what a row has for each of the filters."""
    case = row.case
    values = (case.mechanism, case.implementation, case.config, case.phase, row.status)
    return dict(zip(FILTERS, values, strict=True))


def _value(row: SummaryRow, column: str) -> float | None:
    if column in ("resolution", "tokens"):
        return float(getattr(row.case, column))
    value = getattr(row, VALUES[column]) if column in VALUES else None
    return None if value is None else float(value)


def _fact(line: str) -> tuple[str, str]:
    """A line of a description as a term and what is said of it."""
    term, colon, text = line.partition(": ")
    return (term, text) if colon else ("", line)


def _warnings(run: Run) -> list[Section]:
    flagged = [
        (flag, meaning, f"{len(rows)} of {len(run.rows)}", _names(rows))
        for flag, meaning, rows in explain_flags(run.rows)
    ]
    lacking = [row for row in run.rows if row.status != "ok"]
    tables = []
    for status in dict.fromkeys(row.status for row in lacking):
        concerned = [row for row in lacking if row.status == status]
        caption = f"{status}: {STATUSES.get(status, 'unknown')} ({len(concerned)})"
        cells = [(row.case.cell, row.reason) for row in concerned]
        tables.append(text_table(caption, ("cell", "reason"), cells, is_folded=len(concerned) > MOST_NAMES))
    energy = tuple(energy_remarks(run.rows))
    return [
        Section(
            title="Warnings and flags",
            paragraphs=() if flagged else ("No cell is flagged.",),
            tables=(text_table("Flags", ("flag", "what it says", "cells", "which"), flagged),) if flagged else (),
            remarks=energy,
        ),
        Section(
            title="Cells without a number",
            paragraphs=() if lacking else ("Every cell has a number.",),
            tables=tuple(tables),
        ),
    ]


def _names(rows: Sequence[SummaryRow]) -> str:
    several = len({row.case.config for row in rows}) > 1
    cases = [row.case for row in rows[:MOST_NAMES]]
    names = [
        f"{case.mechanism} {case.implementation} {f'{case.config} ' if several else ''}{case.resolution}"
        for case in cases
    ]
    more = len(rows) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _departures(rows: Sequence[SummaryRow]) -> list[Section]:
    names = list(dict.fromkeys(row.case.mechanism for row in rows))
    departing, computing = departures(names), tools(names)
    sections = []
    if departing:
        title = "Departures of reference"
        what = "How reference departs from the published code:"
        sections.append(Section(title=title, paragraphs=(what,), facts=tuple(departing), is_folded=True))
    if computing and any(row.case.implementation == "fast" for row in rows):
        what = "How fast computes the same function as reference:"
        sections.append(Section(title="Tools of fast", paragraphs=(what,), facts=tuple(computing), is_folded=True))
    return sections


def environment_table(run: Run) -> Table:
    """Return every fact about where a run ran, a column for each environment."""
    environments = run.manifest.environments
    facts = {key: environment_facts(environment) for key, environment in environments.items()}
    names = dict.fromkeys(name for found in facts.values() for name in found)
    rows = [(name, *(found.get(name, "") for found in facts.values())) for name in names]
    return text_table("Where the records were made", ("", *facts), rows)


def environment_facts(environment: Environment) -> dict[str, str]:
    """Return the facts of an environment as they are read, those of its GPU among them."""
    facts: dict[str, str] = {}
    for field in dataclasses.fields(environment):
        if field.name != "gpu":
            facts[_words(field.name)] = _shown(field.name, getattr(environment, field.name))
    if environment.gpu is not None:
        for field in dataclasses.fields(environment.gpu):
            facts[f"GPU: {_words(field.name)}"] = _shown(field.name, getattr(environment.gpu, field.name))
    return facts


def _words(name: str) -> str:
    """The name of a field as it is read, without the unit that is printed with its value."""
    words = re.sub("_(bytes|watts|mhz)$", "", name).split("_")
    return " ".join(SPELLINGS.get(word, word) for word in words)


def _shown(name: str, value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    if name.endswith("_watts") and isinstance(value, float):
        return f"{significant(value)} W"
    return f"{value} MHz" if name.endswith("_mhz") else str(value)


def _reproduction(run: Run) -> Section:
    manifest = run.manifest
    facts = [("Run", f"{run.name}, begun {manifest.created_utc}")]
    commits = set()
    for key, found in manifest.environments.items():
        commit = found.git_commit or "unknown"
        commits.add(commit)
        changed = ", with uncommitted changes" if found.git_dirty else ""
        versions = f"torch {found.torch_version}, timm {found.timm_version}, Python {found.python_version}"
        facts.append(
            (f"Environment {key}", f"infsa-bench {found.infsa_bench_version}, commit {commit}{changed}; {versions}")
        )
    facts.append(("Seed", str(manifest.settings.seed)))
    budget = manifest.settings.time_budget_seconds
    facts.append(("Time budget", "none" if budget is None else format_duration(budget)))
    if run.superseded:
        facts.append(("Superseded", f"{run.superseded} earlier records of cells that were measured again"))
    known = sorted(commit for commit in commits if re.fullmatch("[0-9a-f]{7,64}", commit))
    commands = [f"git checkout {known[0]}"] if len(known) == 1 else []
    return Section(
        title="How to reproduce",
        paragraphs=("Check out the commit, install the versions of constraints.txt, and run:",),
        commands=(*commands, shlex.join(manifest.command)),
        facts=tuple(facts),
    )


def file_name(run: Run) -> str:
    """Return the name of a run as part of the name of a file: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", run.name)[:80].strip("._") or "run"


def downloads(run: Run) -> list[Download]:
    """Return the files of a run that lie in its page."""
    name = file_name(run)
    table = render_csv(run.rows).encode(errors="backslashreplace")
    files = [
        Download(
            name=f"{name}.table.csv",
            source=data_uri(table, "text/csv;charset=utf-8"),
            remark=f"one line a cell, SI units in the names of the columns ({format_bytes(len(table))})",
        )
    ]
    lines = "".join(encode(record) + "\n" for record in run.records)
    # Without the time of packing: the same run, the same bytes.
    for file, text, remark in (
        ("records.jsonl.gz", lines, "every sample of every case"),
        ("manifest.json.gz", encode(run.manifest, indent=1) + "\n", "the plan, the settings, the machine"),
    ):
        packed = gzip.compress(text.encode(errors="backslashreplace"), mtime=0)
        if len(packed) <= MAX_EMBEDDED_BYTES:
            remark = f"{remark} ({format_bytes(len(packed))})"
            files.append(Download(name=f"{name}.{file}", source=data_uri(packed, "application/gzip"), remark=remark))
    return files
