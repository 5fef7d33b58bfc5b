"""Summary rows as Markdown, CSV and a terminal table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.errors import SpecError
from infsa_bench.record import Environment
from infsa_bench.report.units import format_bytes, format_interval_seconds, format_seconds, significant
from infsa_bench.spec import Case, resolve_mechanisms
from infsa_bench.store import Run
from infsa_models.registry import Mechanism

COLUMNS = (
    "mechanism",
    "implementation",
    "resolution",
    "tokens",
    "latency",
    "95 % interval",
    "images/s",
    "peak memory",
    "parameters at 224",
    "parameters",
    "status",
)
TERMINAL_COLUMNS = {
    "mechanism": "mechanism",
    "implementation": "impl",
    "resolution": "side",
    "latency": "latency",
    "95 % interval": "95 % interval",
    "images/s": "images/s",
    "peak memory": "memory",
    "status": "status",
}
RIGHT_ALIGNED = frozenset(COLUMNS) - {"mechanism", "implementation", "status"}


def render_markdown(run: Run, rows: Sequence[SummaryRow]) -> str:
    """Return the whole report of a run as Markdown: where it ran, a table a block, departures as footnotes."""
    lines = [f"# {_escape(run.name)}", ""]
    lines += [f"- {_escape(line)}" for line in describe_run(run, rows)]
    for title, block in blocks(rows):
        lines += ["", f"## {_escape(title)}", ""]
        lines.append("| " + " | ".join(COLUMNS) + " |")
        lines.append("|" + "|".join("---:" if column in RIGHT_ALIGNED else "---" for column in COLUMNS) + "|")
        lines += ["| " + " | ".join(_escape(cell) for cell in _cells(row)) + " |" for row in block]
    reasons = _reasons(rows)
    if reasons:
        lines += ["", "## Cells without a number", ""]
        lines += [f"- {_escape(reason)}" for reason in reasons]
    lines += ["", "## How `reference` departs from the published code", ""]
    for name, mechanism in _mechanisms(rows).items():
        departures = "; ".join(mechanism.departures) or "no departure"
        lines.append(f"- {_escape(name)}: {_escape(departures)}")
    return "\n".join(lines) + "\n"


def render_csv(rows: Sequence[SummaryRow]) -> str:
    """Return one line a case, SI units in the column names; quantities of a failed case are empty, never zero."""
    return _frame(rows).to_csv(index=False)


def render_terminal(title: str, rows: Sequence[SummaryRow]) -> Table:
    """Return one block as a table that fits a terminal of 80 columns: what is compared, not all that is known."""
    # Text, not str: names come from files, and rich would read brackets in them as markup.
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    implementations = {row.case.implementation for row in rows}
    columns = [column for column in TERMINAL_COLUMNS if column != "implementation" or len(implementations) > 1]
    for column in columns:
        justify: JustifyMethod = "right" if column in RIGHT_ALIGNED else "left"
        table.add_column(TERMINAL_COLUMNS[column], justify=justify, overflow="fold")
    for row in rows:
        cells = dict(zip(COLUMNS, _cells(row), strict=True))
        # The flags themselves would not fit; they stand below the table.
        cells["status"] = row.status + ("*" if row.flags else "")
        table.add_row(*(Text(cells[column]) for column in columns))
    return table


def blocks(rows: Sequence[SummaryRow]) -> list[tuple[str, list[SummaryRow]]]:
    """Group rows that may stand in one table: one config, phase, batch size, precision, execution, environment."""
    grouped: dict[str, list[SummaryRow]] = {}
    several = len({row.environment for row in rows}) > 1
    for row in rows:
        case = row.case
        title = f"{case.config}, {case.phase}, {case.precision}, {case.execution}, batch {case.batch_size}"
        grouped.setdefault(title + (f", environment {row.environment}" if several else ""), []).append(row)
    return list(grouped.items())


def describe_run(run: Run, rows: Sequence[SummaryRow]) -> list[str]:
    """Return what a reader must know before the numbers, a line each."""
    settings, protocol = run.manifest.settings, run.manifest.settings.protocol
    lines = [f"Environment {key}: {describe_environment(found)}" for key, found in run.manifest.environments.items()]
    counts = f"up to {protocol.warmup_iterations} warm-up and {protocol.timed_iterations} timed iterations"
    lines.append(f"Protocol {protocol.name}: {counts}, seed {settings.seed}")
    measured = sum(row.status == "ok" for row in rows)
    lines.append(f"{len(run.manifest.plan)} cells planned, {len(rows)} recorded, {measured} measured")
    lines.append(
        "Latency: median host time of one batch, from the call until the device is done; images/s: batch over latency"
    )
    lines.append("Interval: 95 % of the median within one process; a repeated run may differ by more")
    lines.append("Energy: not measured (this version has no meter)")
    return lines


def describe_environment(environment: Environment) -> str:
    """Return one line: device, memory, versions, commit."""
    parts = [f"{environment.device} ({environment.device_name}, {format_bytes(environment.device_memory_bytes)})"]
    if environment.device_type == "cpu":
        parts.append(f"{environment.torch_threads} threads")
    else:
        parts.append(f"driver {environment.driver_version or 'unknown'}, CUDA {environment.cuda_version}")
    parts.append(f"torch {environment.torch_version}, timm {environment.timm_version}")
    commit = environment.git_commit[:12] if environment.git_commit else "unknown"
    parts.append(f"infsa-bench {environment.infsa_bench_version}, commit {commit}")
    if environment.git_dirty:
        parts[-1] += " with uncommitted changes"
    return "; ".join(parts)


def _frame(rows: Sequence[SummaryRow]) -> pd.DataFrame:
    case_fields = [field.name for field in dataclasses.fields(Case) if field.name != "options"]
    row_fields = [field.name for field in dataclasses.fields(SummaryRow) if field.name not in ("case", "flags")]
    whole_numbers = ("timed_iterations", "base_parameters", "parameters", "model_bytes", "peak_memory_bytes")
    records = [
        {"cell": row.case.cell}
        | {name: getattr(row.case, name) for name in case_fields}
        | {"options": ",".join(f"{key}={value}" for key, value in row.case.options), "tokens": row.case.tokens}
        | {name: getattr(row, name) for name in row_fields}
        | {"reason": " ".join(row.reason.split()), "flags": " ".join(row.flags)}
        for row in rows
    ]
    columns = ["cell", *case_fields, "options", "tokens", *row_fields, "flags"]
    # Nullable integers: a column with a failed cell would turn into floats otherwise.
    return pd.DataFrame(records, columns=columns).astype(dict.fromkeys(whole_numbers, "Int64"))


def _cells(row: SummaryRow) -> list[str]:
    low, high = row.latency_low_seconds, row.latency_high_seconds
    few = f"n = {row.timed_iterations}" if row.timed_iterations else ""
    status = row.status if not row.flags else f"{row.status} ({', '.join(row.flags)})"
    return [
        row.case.mechanism,
        row.case.implementation + "".join(f" {key}={value}" for key, value in row.case.options),
        str(row.case.resolution),
        f"{row.case.tokens:,}",
        "" if row.latency_seconds is None else format_seconds(row.latency_seconds),
        few if low is None or high is None else format_interval_seconds(low, high),
        "" if row.images_per_second is None else significant(row.images_per_second),
        "" if row.peak_memory_bytes is None else format_bytes(row.peak_memory_bytes),
        "" if row.base_parameters is None else f"{row.base_parameters:,}",
        "" if row.parameters is None else f"{row.parameters:,}",
        status,
    ]


def _reasons(rows: Iterable[SummaryRow]) -> list[str]:
    return [f"{row.case.cell}: {row.status}: {row.reason}" for row in rows if row.status != "ok"]


def _mechanisms(rows: Iterable[SummaryRow]) -> Mapping[str, Mechanism]:
    """The entries of the mechanisms that rows show; those of a package that is not installed here are left out."""
    found: dict[str, Mechanism] = {}
    for name in dict.fromkeys(row.case.mechanism for row in rows):
        try:
            found |= resolve_mechanisms([name])
        except SpecError:
            continue
    return found


def _escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is: a name may come from somebody else's file."""
    for character in ("\\", "|", "<", ">", "[", "]", "*", "_", "`"):
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
