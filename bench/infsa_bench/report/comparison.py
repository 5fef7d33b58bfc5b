"""A comparison as text for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from infsa_bench.analyze.comparability import Difference
from infsa_bench.analyze.compare import DETECTABLE_TARGET, Comparison, Mean
from infsa_bench.analyze.metrics import METRICS
from infsa_bench.analyze.verdict import Judged, Verdict
from infsa_bench.codec import encode
from infsa_bench.quoting import one_line
from infsa_bench.record import SCHEMA_VERSION
from infsa_bench.report.grid import escape_markdown
from infsa_bench.report.units import format_bytes, format_percent, format_seconds, significant

WORST = 10
COLUMNS = ("verdict", "metric", "cell", "base", "new", "ratio", "95 % interval", "q", "remarks")
ORDER: tuple[Verdict, ...] = ("STATUS_CHANGED", "REGRESSED", "AMBIGUOUS", "NOT_COMPARABLE", "IMPROVED", "SAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """The JSON of a comparison."""

    base: str
    new: str
    is_comparable: bool
    exit_code: int
    counts: dict[str, int]
    differences: tuple[Difference, ...]
    judged: tuple[Judged, ...]
    added: tuple[str, ...]
    means: tuple[Mean, ...]
    detectable: dict[str, float]
    schema_version: int = SCHEMA_VERSION


def render_comparison_json(comparison: Comparison, exit_code: int) -> str:
    """Return everything as one JSON object."""
    document = _Document(
        base=comparison.base,
        new=comparison.new,
        is_comparable=comparison.is_comparable,
        exit_code=exit_code,
        counts={str(verdict): count for verdict, count in comparison.counts.items()},
        differences=comparison.differences,
        judged=comparison.judged,
        added=comparison.added,
        means=comparison.means,
        detectable=comparison.detectable,
    )
    return encode(document, indent=1) + "\n"


def render_comparison_text(comparison: Comparison) -> str:
    """Return what a terminal shows: one entry two lines, so that names of cells have room."""
    lines = [f"{comparison.base} -> {comparison.new}", *describe_comparison(comparison)]
    for item in worst(comparison):
        lines += [f"{_verdict(item)} {item.metric} {item.cell}", f"    {_numbers(item)}"]
    lines += _mean_lines(comparison.means)
    return "\n".join(one_line_indented(line) for line in lines) + "\n"


def one_line_indented(line: str) -> str:
    """Return ``line`` made printable, its indentation kept."""
    text = line.lstrip(" ")
    return " " * (len(line) - len(text)) + one_line(text)


def render_comparison_markdown(comparison: Comparison) -> str:
    """Return a summary for a pull request or a step of a workflow."""
    lines = [f"## {escape_markdown(comparison.base)} -> {escape_markdown(comparison.new)}", ""]
    lines += [f"- {escape_markdown(line)}" for line in describe_comparison(comparison)]
    shown = worst(comparison)
    if shown:
        lines += ["", "| " + " | ".join(COLUMNS) + " |", "|---|---|---|---:|---:|---:|---:|---:|---|"]
        lines += ["| " + " | ".join(map(escape_markdown, _cells(item))) + " |" for item in shown]
    if comparison.means:
        lines += ["", *(f"- {escape_markdown(line)}" for line in _mean_lines(comparison.means))]
    return "\n".join(lines) + "\n"


def describe_comparison(comparison: Comparison) -> list[str]:
    """Return what a reader must know before single cells, a line each."""
    counts = comparison.counts
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if verdict in counts)
    lines = [f"verdicts on cells and metrics: {verdicts or 'none'}"]
    for metric, floor in comparison.detectable.items():
        noisy = " (too noisy for 7 %)" if floor > DETECTABLE_TARGET and metric in ("latency", "throughput") else ""
        lines.append(f"{metric}: these data show a worsening of {format_percent(floor)} four times in five{noisy}")
    for difference in comparison.differences:
        kind = "not comparable" if difference.is_fatal else "differs"
        lines.append(f"{kind}: {difference.what}: {difference.base} -> {difference.new}")
    if comparison.added:
        shown = ", ".join(comparison.added[:WORST])
        more = f" and {len(comparison.added) - WORST} more" if len(comparison.added) > WORST else ""
        lines.append(f"only in {comparison.new}: {shown}{more}")
    return lines


def worst(comparison: Comparison) -> list[Judged]:
    """Return the ten entries that matter most: regressions first, then by how much worse each is."""
    notable = [item for item in comparison.judged if item.verdict != "SAME"]
    return sorted(notable, key=lambda item: (not item.is_regression, ORDER.index(item.verdict), -badness(item)))[:WORST]


def badness(item: Judged) -> float:
    """Return by how much an entry is worse, as a logarithm; of one without numbers, without end if it is worse."""
    if item.ratio is None:
        return math.inf if item.is_regression else 0.0
    sign = -1 if item.metric in ("throughput", "max_resolution") else 1
    return sign * math.log(item.ratio)


def _mean_lines(means: Iterable[Mean]) -> list[str]:
    """Geometric means of the ratios, a line a mechanism."""
    found: dict[str, dict[str, float]] = {}
    for mean in means:
        found.setdefault(mean.mechanism, {})[mean.metric] = mean.ratio
    lines = []
    for mechanism, ratios in found.items():
        shown = ", ".join(f"{metric} x{significant(ratios[metric], 4)}" for metric in METRICS if metric in ratios)
        lines.append(f"geometric mean over the cells of {mechanism}: {shown}")
    return lines


def _verdict(item: Judged) -> str:
    return f"{item.verdict} ({item.direction})" if item.direction else item.verdict


def _cells(item: Judged) -> list[str]:
    interval = ""
    if item.low is not None and item.high is not None:
        interval = f"{significant(item.low, 4)} .. {significant(item.high, 4)}"
    return [
        _verdict(item),
        item.metric,
        item.cell,
        format_value(item, item.base_value),
        format_value(item, item.new_value),
        "" if item.ratio is None else f"x{significant(item.ratio, 4)}",
        interval,
        "" if item.q_value is None else format_q(item.q_value),
        ", ".join([*([item.reason] if item.reason else []), *item.tags]),
    ]


def _numbers(item: Judged) -> str:
    """What an entry says, in one line."""
    _, _, _, base, new, ratio, interval, q_value, remarks = _cells(item)
    change = " -> ".join(part for part in (base, new) if part)
    parts = [change, ratio, f"({interval})" if interval else "", q_value, f"[{remarks}]" if remarks else ""]
    return " ".join(part for part in parts if part)


def format_q(value: float) -> str:
    """Return an adjusted p-value, e.g. ``q = 0.012``."""
    return "q < 0.0001" if value < 1e-4 else f"q = {value:.2g}"


def format_value(item: Judged, value: float | None) -> str:
    """Return a metric's value with its unit."""
    if value is None:
        return ""
    match item.metric:
        case "latency":
            return format_seconds(value)
        case "throughput":
            return f"{significant(value)} images/s"
        case "energy":
            return f"{significant(value)} J/image"
        case "peak_memory":
            return format_bytes(value)
        case "max_resolution":
            return f"{value:.0f} px"
    return ""
