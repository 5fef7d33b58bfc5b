"""A run in the formats of other tools. A cell without a number is left out and counted, never written as zero.

Sources: ``src/extract.ts`` of github-action-benchmark (it reads null and "" as 0, and ignores a name that vanishes);
``bmf.json`` of Bencher; GitHub's workflow commands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from infsa_bench.analyze.baseline import Baseline, baseline_of
from infsa_bench.analyze.compare import Comparison
from infsa_bench.analyze.dominance import resolution_family
from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.analyze.verdict import Judged
from infsa_bench.errors import SpecError
from infsa_bench.quoting import one_line
from infsa_bench.record import MEMORY_KINDS, Failure
from infsa_bench.report.comparison import format_value
from infsa_bench.report.describe import describe_environment
from infsa_bench.report.units import significant

SMALLER, BIGGER = "smaller.json", "bigger.json"
"""One file for each of the tool's ``customSmallerIsBetter`` and ``customBiggerIsBetter``."""

LONGEST_NAME = 1024
"""Of a benchmark, in Bencher."""

MEBIBYTE = 2**20


def render_github_action_benchmark(run: Run) -> dict[str, str]:
    """Return both files by name: JSON arrays of name, unit and value.

    ``infsa/oom_cells`` and ``infsa/failed_cells`` are always there, so that a new one is seen, were it in one process
    of many; cells that were left out for want of time are none. So is ``max_resolution`` of each series of cells.

    Raises:
        SpecError: a cell has two rows, or a name is too long.
    """
    rows = exported_rows(run)
    extra = "\n".join(map(one_line, map(describe_environment, run.manifest.environments.values())))
    smaller: list[dict[str, Any]] = []
    bigger: list[dict[str, Any]] = []
    for row in rows:
        name = row.case.cell
        details = f"processes: {row.processes}\niterations: {row.timed_iterations}"
        details += "\n" + extra if extra else ""
        latency = _entry(f"{name}/latency", "ms", row.latency_seconds, 1e3, details)
        smaller += _with_range(latency, row.latency_low_seconds, row.latency_high_seconds, 1e3)
        energy = _entry(f"{name}/energy", "J/image", row.joules_per_image, 1.0, details)
        smaller += _with_range(energy, row.joules_per_image_low, row.joules_per_image_high, 1.0)
        smaller += _entry(f"{name}/peak_memory", "MiB", row.peak_memory_bytes, 1 / MEBIBYTE, details)
        bigger += _entry(f"{name}/throughput", "images/s", row.images_per_second, 1.0, details)
    for name, resolution in largest_resolutions(run).items():
        bigger += _entry(f"{name}/max_resolution", "px", resolution, 1.0, extra)
    failed = {
        record.case.cell: record.outcome.kind
        for record in run.records
        if isinstance(record.outcome, Failure) and is_failed(record.outcome)
    }
    out_of_memory = sum(kind in MEMORY_KINDS for kind in failed.values())
    for name, count in (("infsa/oom_cells", out_of_memory), ("infsa/failed_cells", len(failed))):
        counters = {"name": name, "unit": "cells", "value": count}
        smaller.append(counters | ({"extra": extra} if extra else {}))
    return {SMALLER: _json(smaller), BIGGER: _json(bigger)}


def is_failed(failure: Failure) -> bool:
    """Tell whether a cell was tried, or not even tried because a smaller one had run out of memory."""
    return failure.kind != "skipped" or failure.dominated_by is not None


def _entry(name: str, unit: str, value: float | None, scale: float, extra: str) -> list[dict[str, Any]]:
    """One entry, or none where there is no number that is one."""
    if value is None or not value * scale > 0:
        return []
    return [{"name": name, "unit": unit, "value": value * scale} | ({"extra": extra} if extra else {})]


def _with_range(
    entries: list[dict[str, Any]], low: float | None, high: float | None, scale: float
) -> list[dict[str, Any]]:
    if low is None or high is None or not high > low:
        return entries
    return [entry | {"range": f"± {significant((high - low) / 2 * scale)}"} for entry in entries]


def render_bencher(run: Run) -> str:
    """Return the Bencher Metric Format: latency in nanoseconds, as its built-in measure is; other units in the slug.

    Raises:
        SpecError: a cell has two rows, or a name is too long.
    """
    benchmarks: dict[str, dict[str, dict[str, float]]] = {}
    for row in exported_rows(run):
        low, high = row.latency_low_seconds, row.latency_high_seconds
        joules = (row.joules_per_image, row.joules_per_image_low, row.joules_per_image_high)
        measures = {
            "latency": _metric(row.latency_seconds, low, high, 1e9),
            "throughput": _metric(row.images_per_second),
            "energy-j-per-img": _metric(*joules),
            "peak-memory-bytes": _metric(row.peak_memory_bytes),
        }
        benchmarks[row.case.cell] = {slug: metric for slug, metric in measures.items() if metric is not None}
    for name, resolution in largest_resolutions(run).items():
        benchmarks[name] = {"max-resolution-px": {"value": float(resolution)}}
    return _json(benchmarks)


def _metric(
    value: float | None, low: float | None = None, high: float | None = None, scale: float = 1.0
) -> dict[str, float] | None:
    if value is None or not value > 0:
        return None
    metric = {"value": value * scale}
    if low is not None and high is not None and low > 0:
        metric |= {"lower_value": low * scale, "upper_value": high * scale}
    return metric


def _json(content: object) -> str:
    return json.dumps(content, allow_nan=False, indent=1, ensure_ascii=False) + "\n"


def exported_rows(run: Run) -> list[SummaryRow]:
    """Return the rows with numbers.

    Raises:
        SpecError: a cell has two rows, as of two machines, or a name is too long.
    """
    rows = [row for row in run.rows if row.status == "ok"]
    seen: set[str] = set()
    for row in rows:
        name = row.case.cell
        if name in seen:
            raise SpecError(f"{name} was measured on two machines: other tools know one number of each")
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise SpecError(f"{name[:60]!r}... is no name for other tools")
        seen.add(name)
    return rows


def largest_resolutions(run: Run) -> dict[str, int]:
    """Return the largest resolution that ran, by series of cells; those of a search as it found them."""
    side: Baseline = baseline_of(run)
    found: dict[str, int] = {}
    for row in run.rows:
        if row.status == "ok":
            name = _series(resolution_family(row.case).cell)
            found[name] = max(found.get(name, 0), row.case.resolution)
    for limit in side.limits:
        if limit.largest_resolution is not None:
            found[_series(resolution_family(limit.model).cell)] = limit.largest_resolution
    return found


def _series(cell: str) -> str:
    """The name of cells that differ in resolution only; colons and stars are not in every tool's names."""
    return cell.replace("/r1/", "/", 1)


def render_annotations(comparison: Comparison) -> str:
    """Return GitHub's workflow commands: an error for each regression, a warning for what cannot be told."""
    lines = [_command("error", item) for item in comparison.judged if item.is_regression]
    lines += [_command("warning", item) for item in comparison.judged if item.verdict == "AMBIGUOUS"]
    for difference in comparison.differences:
        if difference.is_fatal:
            text = f"not comparable: {difference.what}: {difference.base} -> {difference.new}"
            lines.append(f"::error title={_property('not comparable')}::{_message(text)}")
    return "".join(f"{line}\n" for line in lines)


def _command(kind: str, item: Judged) -> str:
    parts = [item.cell]
    if item.base_value is not None and item.new_value is not None:
        parts.append(f"{format_value(item, item.base_value)} -> {format_value(item, item.new_value)}")
    if item.ratio is not None:
        parts.append(f"x{significant(item.ratio, 4)}")
    if item.low is not None and item.high is not None:
        parts.append(f"95 % interval {significant(item.low, 4)} .. {significant(item.high, 4)}")
    parts += [part for part in (item.reason, *item.tags) if part]
    return f"::{kind} title={_property(f'{item.verdict} {item.metric}')}::{_message(', '.join(parts))}"


def _message(text: str) -> str:
    return _escaped(text, {"%": "%25", "\r": "%0D", "\n": "%0A"})


def _property(text: str) -> str:
    return _escaped(text, {"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(letter, letter) for letter in one_line(text))
