"""The largest resolutions that fit, as Markdown, CSV and a terminal table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from infsa_bench.analyze.max_resolution import MaxResolutionRow
from infsa_bench.quoting import one_line
from infsa_bench.record import Failure, Fit, Outcome
from infsa_bench.report.describe import describe_environment, describe_memory_limit
from infsa_bench.report.grid import escape_markdown
from infsa_bench.report.units import format_bytes, format_duration
from infsa_bench.spec import Case
from infsa_bench.store import StoredRun

COLUMNS = (
    "mechanism",
    "implementation",
    "model",
    "largest that fits",
    "tokens",
    "peak memory there",
    "next size",
    "what limits",
    "confirmed",
    "predicted",
    "probes",
    "time",
    "remarks",
)
TERMINAL_COLUMNS = (
    "mechanism",
    "model",
    "largest that fits",
    "peak memory there",
    "next size",
    "what limits",
    "remarks",
)

WHOLE_NUMBERS = (
    "emulated_memory_bytes",
    "max_resolution",
    "smallest_failing_resolution",
    "peak_memory_bytes",
    "predicted_resolution",
)


def describe_search(run: StoredRun) -> list[str]:
    """Return what a reader must know before the numbers of a search, a line each."""
    search, settings = run.manifest.search, run.manifest.settings
    assert search is not None
    lines = [f"Environment {key}: {describe_environment(found)}" for key, found in run.manifest.environments.items()]
    if settings.memory_limit_bytes is not None:
        lines.append(describe_memory_limit(settings.memory_limit_bytes))
    lines += [
        f"Searched: image sides from {search.smallest} to {search.largest} that are multiples of {search.step}; a "
        f"probe builds the model and runs one {_iteration(search.models)}, in "
        f"{format_duration(search.timeout_seconds)} at most",
        "Largest that fits: below the first size that was found to fail; larger ones that fit again are a remark, and "
        "sizes in between that nobody probed are no claim",
        "Confirmed: both sizes were probed three times with the same end, twice in a process of its own",
    ]
    # Names may come from somebody else's file.
    return [one_line(line) for line in lines]


def _iteration(models: Sequence[Case]) -> str:
    phases = {model.phase for model in models}
    return "training step" if phases == {"train"} else "forward" if phases == {"infer"} else "forward or training step"


def describe_fate(outcome: Outcome) -> str:
    """Return what came of a probe, in a few words."""
    match outcome:
        case Failure(kind=kind, cause=cause, stage=stage):
            return f"{kind} ({cause}) at {stage}" if cause else f"{kind} at {stage}"
        case Fit(peak_memory_bytes=peak_bytes) if peak_bytes is not None:
            return f"fits, {format_bytes(peak_bytes)} at the peak"
    return "fits"


def render_search_markdown(run: StoredRun, rows: Sequence[MaxResolutionRow]) -> str:
    """Return the report of a search: where it ran, a row a model, and every probe in the order made."""
    lines = [f"# {escape_markdown(run.name)}: largest resolution that fits", ""]
    lines += [f"- {escape_markdown(line)}" for line in describe_search(run)]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(escape_markdown(cell) for cell in _cells(row).values()) + " |" for row in rows]
    lines += ["", "## Every probe, in the order made", ""]
    lines += [f"- {escape_markdown(f'{record.case.id}: {describe_fate(record.outcome)}')}" for record in run.records]
    return "\n".join(lines) + "\n"


def render_search_csv(rows: Sequence[MaxResolutionRow], memory_limit_bytes: int | None) -> str:
    """Return one line a model; resolutions in pixels a side, what is not known empty."""
    records: list[dict[str, Any]] = [
        {
            "mechanism": row.model.mechanism,
            "implementation": row.model.implementation,
            "config": row.model.config,
            "phase": row.model.phase,
            "precision": row.model.precision,
            "execution": row.model.execution,
            "batch_size": row.model.batch_size,
            "options": ",".join(f"{key}={value}" for key, value in row.model.options),
            "environment": row.environment,
            "emulated_memory_bytes": memory_limit_bytes,
            "max_resolution": row.result.largest_ok,
            "is_at_least": row.result.reached_largest,
            "smallest_failing_resolution": row.result.smallest_failing,
            "limit": row.result.limit,
            "failure_kind": row.failure.kind if row.failure else None,
            "failure_cause": row.failure.cause if row.failure else None,
            "failure_stage": row.failure.stage if row.failure else None,
            "is_confirmed": row.result.is_confirmed,
            "is_finished": row.result.is_finished,
            "fits_again": " ".join(map(str, row.result.fits_again)),
            "unsteady": " ".join(map(str, row.result.unsteady)),
            "peak_memory_bytes": row.peak_memory_bytes,
            "predicted_resolution": row.predicted,
            "is_by_design": row.is_by_design,
            "shared_probes": row.shared_probes,
            "probes": row.probes,
            "seconds": round(row.seconds, 3),
        }
        for row in rows
    ]
    frame = pd.DataFrame(
        {name: one_line(value) if isinstance(value, str) else value for name, value in record.items()}
        for record in records
    )
    for name in WHOLE_NUMBERS:
        frame[name] = pd.array([record[name] for record in records], dtype="Int64")
    return frame.to_csv(index=False)


def render_search_terminal(title: str, rows: Sequence[MaxResolutionRow]) -> Table:
    """Return one row a model, for a terminal."""
    # Text, not str: names come from files, and rich would read brackets in them as markup.
    table = Table(title=Text(one_line(title)), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in TERMINAL_COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = _cells(row)
        table.add_row(*(Text(one_line(cells[column])) for column in TERMINAL_COLUMNS))
    return table


def _cells(row: MaxResolutionRow) -> dict[str, str]:
    model, result = row.model, row.result
    if row.probes == 0:
        largest = "not probed"
    elif result.largest_ok is None:
        largest = "none" if result.smallest_failing is not None else "unknown"
    else:
        largest = f">= {result.largest_ok}" if result.reached_largest else str(result.largest_ok)
    failure = row.failure
    cells = (
        model.mechanism,
        model.implementation + "".join(f" {key}={value}" for key, value in model.options),
        f"{model.config}, {model.phase}, {model.precision}, {model.execution}, batch {model.batch_size}",
        largest,
        "" if result.largest_ok is None else f"{model.tokens:,}",
        "" if row.peak_memory_bytes is None else format_bytes(row.peak_memory_bytes),
        "" if result.smallest_failing is None else str(result.smallest_failing),
        "" if failure is None else describe_fate(failure),
        "yes" if result.is_confirmed else "no",
        "" if row.predicted is None else str(row.predicted),
        str(row.probes),
        format_duration(row.seconds),
        _remarks(row),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _remarks(row: MaxResolutionRow) -> str:
    result = row.result
    remarks = []
    if row.shared_probes:
        remarks.append(f"shared: another sweep may have held memory in {row.shared_probes} of {row.probes} probes")
    if row.is_by_design and row.failure is not None:
        return "; ".join([f"cannot run: {row.failure.message}", *remarks])
    if row.probes and not result.is_finished:
        remarks.append("not finished")
    elif row.probes and not result.is_confirmed:
        remarks.append("not confirmed")
    if result.fits_again:
        remarks.append(f"not monotone: fits again at {', '.join(map(str, result.fits_again))}")
    if result.unsteady:
        remarks.append(f"unsteady: fits sometimes at {', '.join(map(str, result.unsteady))}")
    return "; ".join(remarks)
